"""Runs, side by side."""
