"""FZooS's comparison: `python -m experiments.fzoos [--part main]... [--out runs/fzoos] [--data-dir D] [--workers N]`.

Runs what is not finished in --out, prints a table a setting, draws the pictures and checks the claims. Exit code 1 when
one does not hold, 2 for an input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from experiments.fzoos.applications import (
    ATTACK_CLAIM,
    ENDED,
    METRIC_CLAIM,
    Attacks,
    attack_claim,
    attack_points,
    attacks,
    metric_claim,
    metric_points,
    scores,
)
from experiments.fzoos.study import CLAIMS, HERE, METHODS, SETTINGS, SHARES, Measured, Results, measure, words
from experiments.studies import concluding, console, run_all, said
from fedsim.core.errors import InputError
from fedsim.plots.style import BRIGHT, INK, STYLES, plain, save

PARTS = (*SETTINGS, "attack", "metric")


def table(name: str, measured: Mapping[str, Measured]) -> Table:
    """A row a method, one number a seed."""
    setting = SETTINGS[name]
    laid = Table(title=f"d = {setting.dimension}, C = {setting.heterogeneity:g}", show_edge=False)
    laid.add_column("method")
    for share in SHARES:
        laid.add_column(f"rounds to {share:.0%}", justify="right")
        laid.add_column("evaluations", justify="right")
    laid.add_column(f"gap after {setting.rounds}", justify="right")
    laid.add_column("cosine, rounds 2 to 5", justify="right")
    for method, one in measured.items():
        cells = [text for share in SHARES for text in (words(one.reached(share)), words(one.spent(share)))]
        laid.add_row(METHODS[method], *cells, words(one.gap[:, -1].round(4)), f"{one.cosine[:, 1:5].mean():.2f}")
    return laid


def draw(results: Results, path: Path) -> None:
    """A row a setting: the gap against rounds and against evaluations, and the directions' cosine; means over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 3.4 * len(results) + 0.8), layout="constrained")
    axes = figure.subplots(len(results), 3, squeeze=False)
    for row, (name, methods) in zip(axes, results.items(), strict=True):
        setting = SETTINGS[name]
        for place, (method, one) in enumerate(methods.items()):
            rounds = np.arange(one.gap.shape[1])
            line: dict[str, Any] = {
                "color": BRIGHT[place % len(BRIGHT)],
                "linestyle": STYLES[place % len(STYLES)],
                "linewidth": 1.5,
            }
            gap = np.exp(np.log(one.gap).mean(axis=0))
            row[0].plot(rounds, gap, label=METHODS[method], **line)
            row[1].plot(one.queries.mean(axis=0), gap, **line)
            row[2].plot(rounds[1:], one.cosine.mean(axis=0), **line)
        for axis, label in zip(row, ("round", "evaluations of all clients", "round"), strict=True):
            axis.set_xlabel(label, color=INK)
            plain(axis, grid="both")
        for axis in row[:2]:
            axis.set_yscale("log")
            axis.set_ylabel("gap F - F*", color=INK)
        row[2].set_ylabel("cosine to the gradient of F", color=INK)
        row[0].set_title(f"d = {setting.dimension}, C = {setting.heterogeneity:g}", color=INK, loc="left")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


def draw_attacks(found: Mapping[str, Attacks], path: Path) -> None:
    """The success rate against evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    longest = max(float(one.spent[np.isfinite(one.spent)].max(initial=0.0)) for one in found.values())
    for place, (method, one) in enumerate(found.items()):
        spent = np.sort(one.spent[np.isfinite(one.spent)])
        line: dict[str, Any] = {
            "color": BRIGHT[place % len(BRIGHT)],
            "linestyle": STYLES[place % len(STYLES)],
            "linewidth": 1.6,
        }
        rates = np.minimum(np.arange(len(spent) + 2), len(spent)) / len(one.spent)
        axis.step(np.concatenate(([0.0], spent, [longest])), rates, where="post", label=METHODS[method], **line)
    axis.set_xlabel("evaluations of all clients", color=INK)
    axis.set_ylabel("share of images with F < 0", color=INK)
    axis.set_ylim(-0.02, 1.02)
    plain(axis, grid="both")
    axis.legend(frameon=False, labelcolor=INK)
    save(figure, path)


def main(
    out: Annotated[Path, typer.Option(help="Folder of all runs; those that are finished are not done again.")] = Path(
        "runs/fzoos"
    ),
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; by default all.")] = None,
    data_dir: Annotated[Path | None, typer.Option(envvar="FEDSIM_DATA", help="Folder of the data files.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    pictures: Annotated[Path, typer.Option(help="Folder of the pictures.")] = HERE,
) -> None:
    """Run the comparison, print its tables, draw its pictures and check its claims."""
    chosen = part or list(PARTS)
    with concluding() as judged:
        for name in chosen:
            if name not in PARTS:
                raise InputError("part", name, f"name one of: {', '.join(PARTS)}")
        if "attack" in chosen and data_dir is None:
            raise InputError("data-dir", "(nothing)", "the attacks are on MNIST; set FEDSIM_DATA or leave the part out")
        settings = [name for name in chosen if name in SETTINGS]
        if settings:
            results = measure(out, settings=settings, workers=workers, on_done=said)
            draw(results, pictures / "figure.png")
            for name, measured in results.items():
                console(150).print(table(name, measured))
            judged += [(claim.text, *claim.judge(results)) for claim in CLAIMS if claim.settings <= set(settings)]
        if "attack" in chosen and data_dir is not None:
            points = attack_points(out, data_dir)
            run_all([point for group in points.values() for point in group], workers, said, accepted=ENDED)
            found = attacks(points)
            draw_attacks(found, pictures / "attacks.png")
            judged.append((ATTACK_CLAIM, *attack_claim(found)))
        if "metric" in chosen:
            runs = metric_points(out)
            run_all([point for group in runs.values() for point in group], workers, said, accepted=ENDED)
            judged.append((METRIC_CLAIM, *metric_claim(scores(runs))))


if __name__ == "__main__":
    typer.run(main)
