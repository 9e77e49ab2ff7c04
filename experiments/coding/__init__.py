"""Codes against stragglers: `python -m experiments.coding PART`."""

from pathlib import Path

HERE = Path(__file__).parent
"""Where its files and pictures are."""
