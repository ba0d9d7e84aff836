"""Columns for rows that are there."""
