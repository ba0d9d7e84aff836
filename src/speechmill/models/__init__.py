"""Weights and checkpoints: found, checked, opened."""
