"""Accuracy against bytes: `python -m experiments.one_byte [--part digits]... [--data-dir D] [--out runs/one_byte]`.

Runs what is not finished in --out, prints a table a part, draws a picture of each and checks the claims. Exit code 1
when one does not hold, 2 for an input that cannot be used. Fashion-MNIST is left out where there is no data folder.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from experiments.one_byte.study import (
    CLAIMS,
    CLIENTS,
    HERE,
    METHODS,
    PARTS,
    Results,
    measure,
    nearly,
    said_times,
    times_fewer,
)
from experiments.studies import band, cell, concluding, console, said
from fedsim.core.errors import InputError
from fedsim.plots.style import INK, plain, save

RIVALS = ("fedavg_1", "fedavg")


def table(part: str, results: Results) -> Table:
    """A row a method; mean ± sample standard deviation over the seeds."""
    caption = "of one client; ×: times fewer bytes up than FedAvg's until its final accuracy less half a point"
    laid = Table(title=PARTS[part].name, show_edge=False, caption=caption)
    laid.add_column("method")
    headings = ("accuracy", "bytes up", f"to {PARTS[part].level:.0%}", "rounds", "evaluations")
    for heading in (*headings, *(f"× {METHODS[rival]}" for rival in RIVALS)):
        laid.add_column(heading, justify="right")
    fewer = [times_fewer(results, rival, nearly(results[rival])) for rival in RIVALS]
    for method, one in results.items():
        cells = [cell(100.0 * one.final, 1), f"{one.uplink[:, -1].mean():,.0f}", _bytes(one.spent(PARTS[part].level))]
        cells += [f"{one.sent.shape[1]}", f"{one.queries.sum(axis=1).mean() / CLIENTS:,.0f}"]
        laid.add_row(METHODS[method], *cells, *(said_times(ratios[method]) for ratios in fewer))
    return laid


def _bytes(count: float) -> str:
    return "never" if math.isinf(count) else f"{count:,.0f}"


def draw(part: str, results: Results, path: Path) -> None:
    """Test accuracy against the bytes that a client has sent: mean, and a band of one deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    for place, (method, one) in enumerate(results.items()):
        band(axis, place, METHODS[method], one.uplink.mean(axis=0), one.accuracy)
    axis.set_xscale("log")
    axis.set_xlabel("bytes sent by a client", color=INK)
    axis.set_ylabel("test accuracy", color=INK)
    axis.set_title(PARTS[part].name, color=INK, loc="left")
    plain(axis, grid="both")
    lines, labels = axis.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


def main(
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; by default all.")] = None,
    data_dir: Annotated[Path | None, typer.Option(envvar="FEDSIM_DATA", help="Folder of the data files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs; those that are finished are not done again.")] = Path(
        "runs/one_byte"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    pictures: Annotated[Path, typer.Option(help="Folder of the pictures.")] = HERE,
) -> None:
    """Run the comparison, print its tables, draw its pictures and check its claims."""
    with concluding() as judged:
        for name in part or PARTS:
            if name not in PARTS:
                raise InputError("part", name, f"name one of: {', '.join(PARTS)}")
            if name == "fashion" and data_dir is None:
                typer.echo("fashion: left out, for its data are in no folder; set FEDSIM_DATA or --data-dir")
                continue
            results = measure(name, out, data_dir=data_dir, workers=workers, on_done=said)
            draw(name, results, pictures / f"{name}.png")
            console(150).print(table(name, results))
            judged += [(claim.text, *claim.judge(results)) for claim in CLAIMS if claim.part == name]


if __name__ == "__main__":
    typer.run(main)
