"""Structural checks, one module per family of containers."""
