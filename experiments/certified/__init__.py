"""Certified robustness: `python -m experiments.certified PART`."""

from pathlib import Path

HERE = Path(__file__).parent
"""Where its files and pictures are."""
