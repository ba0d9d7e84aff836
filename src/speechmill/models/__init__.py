"""Weights and checkpoints: find, verify and load them."""
