"""Rules of a step beside each other: `python -m experiments.optimizers PART`."""

from pathlib import Path

HERE = Path(__file__).parent
"""Where its files and pictures are."""
