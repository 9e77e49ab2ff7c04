"""Privacy of single examples: `python -m experiments.privacy PART [--out runs/privacy] [--workers N]`.

PART is one of `PARTS`. Runs what is not finished in --out, prints the table, draws the picture and checks the claims.
Exit code 1 when one does not hold, 2 for an input that cannot be used. `python -m experiments.privacy.study` is about
clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.parts import AnyPart, program
from experiments.privacy import examples

PARTS: Mapping[str, AnyPart] = {part.name: part for part in (examples.PART,)}


if __name__ == "__main__":
    program(PARTS, Path("runs/privacy"))
