"""No server: `python -m experiments.gossip PART [--out runs/gossip] [--workers N]`.

PART is one of `PARTS`. Runs what is not finished in --out, prints the table, draws the picture and checks the claims.
Exit code 1 when one does not hold, 2 for an input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from experiments.gossip import graphs, walks
from experiments.parts import AnyPart, tell

PARTS: Mapping[str, AnyPart] = {part.name: part for part in (graphs.PART, walks.PART)}


def main(
    part: Annotated[str, typer.Argument(help=f"One of: {', '.join(PARTS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs; those that are finished are not done again.")] = Path(
        "runs/gossip"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Where the picture goes; by default beside this file.")] = None,
) -> None:
    """Run a part, print its table, draw its picture and check its claims."""
    tell(PARTS, part, out, workers, picture)


if __name__ == "__main__":
    typer.run(main)
