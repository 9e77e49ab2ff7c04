"""Curricula's comparison: `python -m experiments.curriculum [--part noise]... [--data-dir D] [--out runs/curriculum]`.

Runs what is not finished in --out, prints a table a setting, draws the pictures and checks the claims. Exit code 1 when
one does not hold, 2 for an input that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from experiments.curriculum.study import (
    CLAIMS,
    HERE,
    LAST,
    METHODS,
    PARTS,
    SETTINGS,
    SNAPSHOTS,
    Measured,
    Results,
    Watched,
    lead,
    measure,
    selected,
    watch,
)
from experiments.studies import band, cell, concluding, console, said
from fedsim.core.errors import InputError
from fedsim.core.pacing import Exponential, Linear, Logarithmic, Pacing, Quadratic, SquareRoot, Step
from fedsim.plots.style import BRIGHT, INK, STYLES, legend_below, plain, save

PACINGS: Mapping[str, Pacing] = {
    "linear": Linear(),
    "quadratic": Quadratic(),
    "square root": SquareRoot(),
    "step": Step(),
    "exponential": Exponential(),
    "logarithmic": Logarithmic(),
}


def table(setting: str, methods: Mapping[str, Measured]) -> Table:
    """A row a method; mean ± sample standard deviation over the seeds."""
    chosen = SETTINGS[setting]
    caption = f"accuracy: %, mean over the last {LAST} rounds; lead: points ahead of no curriculum in the same seed"
    if chosen.published:
        caption += "; published: of CIFAR-10, with more rounds and images"
    laid = Table(title=chosen.title, show_edge=False, caption=caption)
    laid.add_column("method")
    for heading in ("accuracy", "each seed", "lead", "MB sent down", *(["published"] if chosen.published else [])):
        laid.add_column(heading, justify="right")
    for method, one in methods.items():
        cells = [cell(one.final, 1), " ".join(f"{value:.1f}" for value in one.final)]
        cells += ["" if method == "vanilla" else cell(lead(methods, method), 1), f"{one.down.mean() / 1e6:,.0f}"]
        if chosen.published:
            cells.append(f"{chosen.published[method]:.1f}" if method in chosen.published else "")
        laid.add_row(METHODS[method], *cells)
    return laid


def draw(results: Results, path: Path) -> None:
    """Test accuracy over the rounds, a panel a setting: mean, and a band of one deviation over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 4.8 * len(results), 3.6), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    known = [name for name in METHODS if any(name in methods for methods in results.values())]
    for axis, (setting, methods) in zip(axes, results.items(), strict=True):
        for method, one in methods.items():
            rounds = np.arange(1.0, one.accuracy.shape[1] + 1.0)
            band(axis, known.index(method), METHODS[method], rounds, one.accuracy)
        axis.set_title(SETTINGS[setting].title, color=INK, loc="left", fontsize=10)
        axis.set_xlabel("round", color=INK)
        plain(axis, grid="both")
    axes[0].set_ylabel("test accuracy", color=INK)
    entries = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    legend_below(figure, {METHODS[name]: entries[METHODS[name]] for name in known}, None)
    save(figure, path)


def draw_pacings(path: Path) -> None:
    """How many of 400 examples are in, over the 200 local steps of five epochs in batches of ten."""
    from matplotlib.figure import Figure

    examples, steps = 400, 200
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (name, pacing) in enumerate(PACINGS.items()):
        items = [pacing.items(step, steps, examples) for step in range(steps + 1)]
        axis.plot(items, STYLES[place % len(STYLES)], color=BRIGHT[place], linewidth=1.6, label=name)
    axis.set_xlabel("local step", color=INK)
    axis.set_ylabel("examples that are in", color=INK)
    axis.set_ylim(0.0, 1.05 * examples)
    plain(axis, grid="both")
    legend_below(figure, dict(zip(PACINGS, axis.get_lines(), strict=True)), "a = 0.8, b = 0.2")
    save(figure, path)


def draw_selection(took_part: Mapping[str, NDArray[np.bool_]], path: Path) -> None:
    """Who takes part in which round, a panel a method; clients ascend by difficulty, as their numbers do."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 4.8 * len(took_part), 3.8), layout="constrained")
    axes = figure.subplots(1, len(took_part), squeeze=False, sharey=True)[0]
    for axis, (method, rounds) in zip(axes, took_part.items(), strict=True):
        round_, client = np.nonzero(rounds)
        axis.scatter(round_ + 1, client, s=7, marker="s", color=BRIGHT[0], linewidths=0)
        mean = [clients.nonzero()[0].mean() for clients in rounds]
        axis.plot(np.arange(1, len(mean) + 1), mean, color=BRIGHT[1], linewidth=1.6)
        axis.set_title(METHODS[method], color=INK, loc="left", fontsize=10)
        axis.set_xlabel("round", color=INK)
        plain(axis, grid=None)
    axes[0].set_ylabel("client, from easy to hard images", color=INK)
    entries = dict(zip(("takes part", "mean of the round"), (axes[0].collections[0], axes[0].lines[0]), strict=True))
    legend_below(figure, entries, None)
    save(figure, path)


def draw_scores(seen: Watched, path: Path) -> None:
    """Histograms of the scores of all examples after some rounds, those with a right label and with a wrong one."""
    from matplotlib.figure import Figure

    panels, least, share = len(seen.scores), max(1e-3, float(seen.scores.min())), 0.2
    wrong = seen.wrong_among_easiest(share)
    figure = Figure(figsize=(0.6 + 3.2 * panels, 3.0), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, sharex=True, sharey=True)[0]
    edges = np.geomspace(least, max(10.0, float(seen.scores.max())), 60)
    for axis, number, scores, part in zip(axes, SNAPSHOTS, seen.scores.clip(least), wrong, strict=False):
        for colour, label, chosen in ((BRIGHT[0], "right label", ~seen.wrong), (BRIGHT[1], "wrong label", seen.wrong)):
            axis.hist(scores[chosen], edges, color=colour, alpha=0.6, label=label)
        axis.axvline(np.quantile(scores, share), color=INK, linewidth=1.0, linestyle="--")
        axis.set_xscale("log")
        heading = f"round {number}: {part:.0%} of the easiest\nfifth wrong, of all {seen.wrong.mean():.0%}"
        axis.set_title(heading, color=INK, loc="left", fontsize=9)
        axis.set_xlabel("score (loss under the global model)", color=INK)
        plain(axis, grid="y")
    axes[0].set_ylabel("examples", color=INK)
    entries = dict(zip(("right label", "wrong label"), axes[0].containers, strict=True))
    legend_below(figure, {**entries, "easiest fifth, to the left": axes[0].lines[0]}, None)
    save(figure, path)


def main(
    data_dir: Annotated[Path, typer.Option(envvar="FEDSIM_DATA", help="Folder of the data files.")],
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; by default all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs; those that are finished are not done again.")] = Path(
        "runs/curriculum"
    ),
    rounds: Annotated[int | None, typer.Option(min=1, help="Of every run, for a first look in another --out.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    pictures: Annotated[Path, typer.Option(help="Folder of the pictures.")] = HERE,
) -> None:
    """Run the comparison, print its tables, draw its pictures and check its claims."""
    chosen = part or list(PARTS)
    with concluding() as judged:
        for name in chosen:
            if name not in PARTS:
                raise InputError("part", name, f"name one of: {', '.join(PARTS)}")
        draw_pacings(pictures / "pacing.png")
        for name in chosen:
            results = measure(name, out, data_dir=data_dir, rounds=rounds, workers=workers, on_done=said)
            draw(results, pictures / f"{name}.png")
            for setting, methods in results.items():
                console(120).print(table(setting, methods))
            first = next(iter(results.values()))
            if name == "clients":
                took_part = {method: selected(first[method].points[0]) for method in ("clients", "clients_anti")}
                draw_selection(took_part, pictures / "selection.png")
            if name == "noise":
                draw_scores(watch(first["curriculum"].points[0]), pictures / "scores.png")
            judged += [(claim.text, *claim.judge(results)) for claim in CLAIMS if claim.part == name]


if __name__ == "__main__":
    typer.run(main)
