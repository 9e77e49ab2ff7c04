"""DoG on the server: whether a server that finds its own rate repairs clients whose own is too small.

The digits, 60 rounds (digits.toml), seeds 0 to 4. Clients step by SGD, at 0.1, near its best, and at a tenth of that.
The server takes their mean change as it is, or steps by DoG from 0.01 or from the authors' 1e-6. Nothing is chosen. 359
test examples: one is 0.0028.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.optimizers import HERE
from experiments.parts import Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, cell
from fedsim.plots.style import BRIGHT, INK, plain, save
from fedsim.running.sweep import Outcome, expand

SEEDS = range(5)
RATES = ("0.1", "0.01")
SERVERS = {
    "mean": ("the mean change", "sgd"),
    "dog": ("DoG from 0.01", "{ kind = 'dog', reps_rel = 1e-2 }"),
    "published": ("DoG from 1e-6", "{ kind = 'dog', reps_rel = 1e-6 }"),
}
"""What the server steps by, in words and in a file."""
Results = Mapping[str, Numbers]
"""By server: test accuracies after the last round [rates, seeds]; where a run had diverged it is 0."""


def measure(
    out: Path,
    *,
    rounds: int | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed.

    rounds: of every run, instead of the file's.
    """
    settings = () if rounds is None else (f"rounds={rounds}",)
    points = [
        expand(
            [HERE / "digits.toml"],
            out=out / name / lr,
            grid={},
            seeds=SEEDS,
            overrides=(f"strategy.server_optimizer={rule}", f"client.lr={lr}", *settings),
        )
        for name, (_, rule) in SERVERS.items()
        for lr in RATES
    ]
    carry_out(points, workers, on_done)
    ended = np.array([accuracies(own) for own in points])
    return dict(zip(SERVERS, ended.reshape(len(SERVERS), len(RATES), len(SEEDS)), strict=True))


def table(results: Results) -> Table:
    """A row a server."""
    laid = Table(show_edge=False, caption="test accuracy after 60 rounds; ±: one sample standard deviation over seeds")
    laid.add_column("server")
    for lr in RATES:
        laid.add_column(f"clients' rate {lr}", justify="right")
    for name, found in results.items():
        laid.add_row(SERVERS[name][0], *(cell(own, 3) for own in found))
    return laid


def draw(results: Results, path: Path) -> None:
    """Accuracies of each server, by the clients' rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axis = figure.subplots()
    for place, found in enumerate(results.values()):
        for number, (own, lr) in enumerate(zip(found, RATES, strict=True)):
            where = place + 0.2 * (number - 0.5)
            axis.plot(np.full(len(own), where), own, "o", color=BRIGHT[number], markersize=3, alpha=0.5)
            label = f"clients' rate {lr}" if place == 0 else None
            axis.plot([where], [own.mean()], "D", color=BRIGHT[number], markersize=6, label=label)
    axis.set_xticks(range(len(results)), [SERVERS[name][0] for name in results])
    axis.set_ylabel("test accuracy after 60 rounds", color=INK)
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    plain(axis, grid="y")
    save(figure, path)


def repairs(results: Results) -> tuple[str, bool]:
    """Whether DoG gains a point at least where clients are slow, and loses no more than one where they are not."""
    told = {name: results[name].mean(axis=1) for name in ("mean", "dog")}
    gains = told["dog"] - told["mean"]
    words = [f"clients at {lr}: {told['mean'][at]:.3f} to {told['dog'][at]:.3f}" for at, lr in enumerate(RATES)]
    return ", ".join(words), bool(gains[1] >= 0.01 and gains[0] >= -0.01)


def published(results: Results) -> tuple[str, bool]:
    """Whether it has learnt next to nothing from the authors' start."""
    ends = results["published"].mean(axis=1)
    return f"{ends[0]:.3f} and {ends[1]:.3f}", bool(ends.max() <= 0.3)


PART = Part(
    HERE,
    "servers",
    measure,
    table,
    draw,
    (
        Claim(
            "server_dog",
            "a server's DoG from 0.01 on the digits, 60 rounds: a point better at least than the mean change where"
            " clients are slow (rate 0.01), and no more than a point worse where they are not (0.1)",
            repairs,
        ),
        Claim("server_published", "and from the published 1e-6 it ends at 0.3 at most", published),
    ),
)
