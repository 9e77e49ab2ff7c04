"""Models of the clients' own beside one for all: `python -m experiments.personal PART`."""

from pathlib import Path

HERE = Path(__file__).parent
"""Where its files and pictures are."""
