"""Evolution: `python -m experiments.evolution PART [--out runs/evolution] [--workers N]`.

PART is one of `PARTS`. Runs what is not finished in --out, prints the table, draws the picture and checks the claims.
Exit code 1 when one does not hold, 2 for an input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.evolution import cartpole, digits, sketches, whole
from experiments.parts import AnyPart, program

PARTS: Mapping[str, AnyPart] = {part.name: part for part in (digits.PART, cartpole.PART, sketches.PART, whole.PART)}


if __name__ == "__main__":
    program(PARTS, Path("runs/evolution"))
