"""The comparison of personal models: `python -m experiments.personal PART [--out runs/personal] [--workers N]`.

PART is one of `PARTS`. Runs what is not finished in --out, prints the table, draws the picture and checks the claims.
Exit code 1 when one does not hold, 2 for an input that cannot be used. What needs data finds them by FEDSIM_DATA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.parts import AnyPart, program
from experiments.personal import settings, untuned

PARTS: Mapping[str, AnyPart] = {untuned.PART.name: untuned.PART, **settings.PARTS}


if __name__ == "__main__":
    program(PARTS, Path("runs/personal"))
