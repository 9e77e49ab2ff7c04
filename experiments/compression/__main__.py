"""Compression in parts: `python -m experiments.compression PART [--out runs/compression] [--workers N]`.

PART is one of `PARTS`. Runs what is not finished in --out, prints the table, draws the picture and checks the claims.
Exit code 1 when one does not hold, 2 for an input that cannot be used. What all clients' replies cost is in `study`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.compression import layers, participation, weights
from experiments.parts import AnyPart, program

PARTS: Mapping[str, AnyPart] = {part.name: part for part in (participation.PART, layers.PART, weights.PART)}


if __name__ == "__main__":
    program(PARTS, Path("runs/compression"))
