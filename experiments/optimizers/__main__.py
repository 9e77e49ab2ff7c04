"""The comparison of rules of a step: `python -m experiments.optimizers PART [--out runs/optimizers] [--workers N]`.

PART is one of `PARTS`. Runs what is not finished in --out, prints the table, draws the picture and checks the claims.
Exit code 1 when one does not hold, 2 for an input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.optimizers import batch_sizes, curvature, distances, merging, rules, servers
from experiments.parts import AnyPart, program

PARTS: Mapping[str, AnyPart] = {
    one.PART.name: one.PART for one in (rules, distances, servers, merging, batch_sizes, curvature)
}


if __name__ == "__main__":
    program(PARTS, Path("runs/optimizers"))
