"""FAL in theory and on images: `python -m experiments.fal [--part theory]... [--data-dir D] [--out runs/fal]`.

Runs what is not finished in --out, prints a table a part, draws its pictures and checks the claims. Exit code 1 when
one does not hold, 2 for an input that cannot be used. The images are left out where there is no data folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from experiments.fal.pictures import attacked_images, draw_accuracies, draw_images, draw_losses
from experiments.fal.study import (
    ARMS,
    DELTAS,
    EPSILON,
    EXHAUSTIVE,
    HERE,
    METHODS,
    PARTS,
    PRACTICE_CLAIMS,
    PRACTISED,
    RELATIVES,
    SAMPLE,
    THEORY_CLAIMS,
    Losses,
    Results,
    practice,
    theory,
)
from experiments.studies import cell, concluding, console, said
from fedsim.core.errors import InputError


def losses_table(losses: Losses) -> Table:
    """A row a distance and arm: the loss under attack, its least over the rounds and the last."""
    laid = Table(title="Two layers", show_edge=False, caption="training loss under PGD-10; mean ± deviation over seeds")
    laid.add_column("method")
    for heading in ("points apart", "minimum", "last round"):
        laid.add_column(heading, justify="right")
    for number, delta in enumerate(DELTAS):
        for arm in ARMS:
            curves = losses[arm][number]
            laid.add_row(METHODS[arm].label, f"≥ {delta:g}", cell(curves.min(axis=1), 4), cell(curves[:, -1], 4))
    return laid


def accuracies_table(results: Results) -> Table:
    """A row a method; mean ± sample standard deviation over the seeds."""
    caption = f"test accuracy after the last round, in per cent; AutoAttack: first seed, {SAMPLE} images"
    laid = Table(title="Fashion-MNIST", show_edge=False, caption=caption)
    laid.add_column("method")
    for heading in ("seeds", "clean", "FGSM", "PGD-20", "its mean over rounds", "AutoAttack"):
        laid.add_column(heading, justify="right")
    for name, one in results.items():
        last = [cell(100.0 * curves[:, -1], 1) for curves in (one.clean, one.fgsm, one.pgd)]
        resists = "" if one.autoattack is None else f"{100.0 * one.autoattack:.1f}"
        laid.add_row(METHODS[name].label, str(len(one.clean)), *last, cell(100.0 * one.pgd.mean(axis=1), 1), resists)
    return laid


def main(
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; by default all.")] = None,
    data_dir: Annotated[Path | None, typer.Option(envvar="FEDSIM_DATA", help="Folder of the data files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs; those that are finished are not done again.")] = Path(
        "runs/fal"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    pictures: Annotated[Path, typer.Option(help="Folder of the pictures.")] = HERE,
) -> None:
    """Run the comparisons, print their tables, draw their pictures and check their claims."""
    with concluding() as judged:
        for name in part or PARTS:
            if name not in PARTS:
                raise InputError("part", name, f"name one of: {', '.join(PARTS)}")
            if name == "theory":
                losses = theory(out, workers=workers, on_done=said)
                draw_losses(losses, pictures / "theory.png")
                console(120).print(losses_table(losses))
                judged += [(claim.text, *claim.judge(losses)) for claim in THEORY_CLAIMS]
            elif data_dir is None:
                typer.echo(f"{name}: left out, for its data are in no folder; set FEDSIM_DATA or --data-dir")
            else:
                methods = PRACTISED if name == "practice" else tuple(METHODS)
                results = practice(out, methods, data_dir=data_dir, workers=workers, on_done=said)
                draw_accuracies(results, pictures / f"{name}.png")
                console(120).print(accuracies_table(results))
                if name == "relatives":
                    judged.append((RELATIVES.text, *RELATIVES.judge(results)))
                    continue
                found = {METHODS[method].label: attacked_images(results[method].points[0]) for method in EXHAUSTIVE}
                draw_images(found, EPSILON, pictures / "images.png")
                judged += [(claim.text, *claim.judge(results)) for claim in PRACTICE_CLAIMS]


if __name__ == "__main__":
    typer.run(main)
