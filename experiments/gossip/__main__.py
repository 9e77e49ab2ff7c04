"""No server: `python -m experiments.gossip PART [--out runs/gossip] [--workers N]`.

PART is one of `PARTS`. Runs what is not finished in --out, prints the table, draws the picture and checks the claims.
Exit code 1 when one does not hold, 2 for an input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.gossip import graphs, walks
from experiments.parts import AnyPart, program

PARTS: Mapping[str, AnyPart] = {part.name: part for part in (graphs.PART, walks.PART)}


if __name__ == "__main__":
    program(PARTS, Path("runs/gossip"))
