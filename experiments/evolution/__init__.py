"""Evolution: `python -m experiments.evolution PART`."""

from pathlib import Path

HERE = Path(__file__).parent
"""Where its files and pictures are."""
