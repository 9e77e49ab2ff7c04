"""Certified robustness: `python -m experiments.certified PART [--out runs/certified] [--workers N]`.

PART is one of `PARTS`. Runs what is not finished in --out, prints the table, draws the picture and checks the claims.
Exit code 1 when one does not hold, 2 for an input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.certified import digits
from experiments.parts import AnyPart, program

PARTS: Mapping[str, AnyPart] = {digits.PART.name: digits.PART}


if __name__ == "__main__":
    program(PARTS, Path("runs/certified"))
