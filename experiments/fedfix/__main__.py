"""FedFix's comparison: `python -m experiments.fedfix [--data-dir D] [--out runs/fedfix] [--seeds 0-4] [--workers N]`.

Runs what is not finished in --out, prints the table, draws the picture and checks the claims. Exit code 1 when one does
not hold, 2 for an input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from experiments.fedfix.study import CLAIMS, HERE, LEVEL, SCHEMES, Measured, best, measure
from experiments.studies import band, cell, concluding, console, said
from fedsim.cli.arguments import parse_seeds
from fedsim.plots.style import INK, plain, save


def table(tuned: Mapping[str, Measured]) -> Table:
    """A row a scheme at its best learning rate; mean ± sample standard deviation over the seeds."""
    laid = Table(show_edge=False, caption="±: one sample standard deviation over the seeds; losses: of training")
    laid.add_column("scheme")
    headings = ("best lr", "mean loss", "loss after 30 s", f"s to loss {LEVEL}", "test accuracy", "of clients' own")
    for heading in headings:
        laid.add_column(heading, justify="right")
    for scheme, one in tuned.items():
        finals = (one.accuracy[:, -1], one.own[:, -1])
        cells = [cell(one.area, 3), cell(one.tail, 3), f"{one.reached:g}", *(cell(final, 3) for final in finals)]
        laid.add_row(SCHEMES[scheme], f"{one.lr:g}", *cells)
    return laid


def draw(tuned: Mapping[str, Measured], path: Path) -> None:
    """Training loss and test accuracy against virtual time: mean, and a band of one deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, name in ((left, "training loss"), (right, "test accuracy")):
        for place, (scheme, one) in enumerate(tuned.items()):
            curves = one.loss if axis is left else one.accuracy
            seconds = np.arange(1.0, curves.shape[1] + 1.0)
            band(axis, place, f"{SCHEMES[scheme]} (lr {one.lr:g})", seconds, curves)
        axis.set_xlabel("virtual time (s)", color=INK)
        axis.set_ylabel(name, color=INK)
        plain(axis, grid="both")
    left.set_ylim(0.3, 1.2)
    right.set_ylim(0.5, 0.85)
    lines, labels = left.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8, labelcolor=INK)
    save(figure, path)


def main(
    data_dir: Annotated[Path, typer.Option(envvar="FEDSIM_DATA", help="Folder of the data files.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs; those that are finished are not done again.")] = Path(
        "runs/fedfix"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, as in 0-4 or 0,2,5.")] = "0-4",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = HERE / "figure.png",
) -> None:
    """Run the comparison, print its table, draw its picture and check its claims."""
    with concluding() as judged:
        results = measure(out, data_dir=data_dir, seeds=parse_seeds(seeds), workers=workers, on_done=said)
        tuned = {scheme: best(grid) for scheme, grid in results["unequal"].items()}
        draw(tuned, picture)
        judged += [(claim.text, *claim.judge(results)) for claim in CLAIMS]
        console(140).print(table(tuned))


if __name__ == "__main__":
    typer.run(main)
