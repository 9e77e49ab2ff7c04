"""FedAvg, D-PSGD, gradient tracking and push-sum on graphs that link thirty-six clients ever more closely.

Each takes one step on all of its examples a round. Rates are the best of a grid for the mean model on the seeds 100 and
101; what is told is from the seeds 0 to 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.gossip import HERE
from experiments.parts import Claim, Part, carry_out
from experiments.studies import Numbers, band, cell
from fedsim.plots.style import INK, plain, save
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 102), range(3)
RATES = ("0.25", "0.5", "1.0")
WAYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "fedavg": ("FedAvg, a server", ("strategy.weighting=uniform",)),
    "complete": ("D-PSGD, complete", ("strategy={kind='dpsgd', graph='complete'}", "client.kind=dpsgd")),
    "torus": ("D-PSGD, torus", ("strategy={kind='dpsgd', graph='torus'}", "client.kind=dpsgd")),
    "ring": ("D-PSGD, ring", ("strategy={kind='dpsgd', graph='ring'}", "client.kind=dpsgd")),
    "tracking": (
        "gradient tracking, ring",
        ("strategy={kind='gradient_tracking', graph='ring'}", "client.kind=gradient_tracking"),
    ),
    "push_sum": ("push-sum, ring one way", ("strategy.kind=push_sum", "client.kind=push_sum")),
}
"""The ways, and how the file is changed for each."""
NEAR = 0.01
"""How far from another accuracy counts as being there."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A way with the rate that was chosen. mean, own: test accuracies of the mean model and accuracies of clients' own.

    Curves, [S, points]; of FedAvg own is the model for all. consensus, megabytes: at the end, and sent in all, [S].
    """

    label: str
    chosen: str
    rounds: Numbers
    mean: Numbers
    own: Numbers
    consensus: Numbers
    megabytes: Numbers


Results = Mapping[str, Measured]


def runs(name: str, rate: str, seeds: Sequence[int], out: Path) -> list[Point]:
    """A way's runs with a rate, seed by seed."""
    overrides = (f"client.lr={rate}", *WAYS[name][1])
    return expand([HERE / "graphs.toml"], out=out / name / rate, seeds=seeds, overrides=overrides)


def measured(name: str, rate: str, points: Sequence[Point]) -> Measured:
    """What runs came to."""
    histories = [open_run(point.folder).history for point in points]
    rows = [[row for row in history.rows if row.get("test_accuracy") is not None] for history in histories]
    own = "client_accuracy_mean" if name == "fedavg" else "personal_accuracy_mean"

    def curves(column: str) -> Numbers:
        return np.array([[row[column] for row in one] for one in rows])

    apart = [one[-1].get("consensus", 0.0) for one in rows]
    sent = [sum(row["bytes_up"] for row in history.rows) / 1e6 for history in histories]
    when = np.array([row["round"] for row in rows[0]], dtype=np.float64)
    mean, theirs = curves("test_accuracy"), curves(own)
    return Measured(WAYS[name][0], rate, when, mean, theirs, np.array(apart), np.array(sent))


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    tried = {name: {rate: runs(name, rate, CHOOSING, out) for rate in RATES} for name in WAYS}
    carry_out([points for rates in tried.values() for points in rates.values()], workers, on_done)
    chosen = {
        name: max(RATES, key=lambda rate: float(measured(name, rate, tried[name][rate]).mean[:, -1].mean()))
        for name in WAYS
    }
    told = {name: runs(name, rate, TOLD, out) for name, rate in chosen.items()}
    carry_out(told.values(), workers, on_done)
    return {name: measured(name, chosen[name], points) for name, points in told.items()}


def table(results: Results) -> Table:
    """A row a way."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(TOLD) - 1}")
    for heading in ("way", "lr"):
        laid.add_column(heading)
    for heading in ("mean model", "clients' own", "consensus distance", "MB sent"):
        laid.add_column(heading, justify="right")
    for row in results.values():
        ends = (cell(row.mean[:, -1], 3), cell(row.own[:, -1], 3))
        laid.add_row(row.label, row.chosen, *ends, cell(row.consensus, 3), cell(row.megabytes, 1))
    return laid


def draw(results: Results, path: Path) -> None:
    """Accuracy of the mean model, and of clients' own, against rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    sides = {"mean": "the mean model, test set", "own": "clients' own, own examples"}
    for axis, (column, title) in zip(figure.subplots(1, 2, sharey=True), sides.items(), strict=True):
        for number, row in enumerate(results.values()):
            band(axis, number, row.label, row.rounds, getattr(row, column))
        axis.set_xlabel("round", color=INK)
        axis.set_title(title, color=INK, fontsize=10)
        axis.set_ylim(bottom=0.5)
        plain(axis, grid="both")
    figure.axes[0].set_ylabel("accuracy", color=INK)
    figure.axes[1].legend(frameon=False, fontsize=8, labelcolor=INK)
    save(figure, path)


def as_fedavg(results: Results) -> tuple[str, bool]:
    """Whether a complete graph does what a server does."""
    apart = float(np.abs(results["complete"].mean - results["fedavg"].mean).max())
    return f"apart by at most {apart:.4f}", apart <= NEAR


def closer(results: Results) -> tuple[str, bool]:
    """Whether clients are the closer the more links they have, in each seed."""
    rows = [results[name].consensus for name in ("ring", "torus", "complete")]
    held = bool((rows[0] > rows[1]).all() and (rows[1] > rows[2]).all())
    return ", ".join(f"{results[name].label} {cell(results[name].consensus, 3)}" for name in ("ring", "torus")), held


def tracked(results: Results) -> tuple[str, None]:
    """What tracking gains in clients' own models where links are few."""
    gain = results["tracking"].own[:, -1] - results["ring"].own[:, -1]
    return f"{cell(gain, 3)} ({', '.join(f'{one:+.3f}' for one in gain)})", None


def costs(results: Results) -> tuple[str, None]:
    """What each has sent."""
    return ", ".join(f"{row.label} {row.megabytes.mean():.1f} MB" for row in results.values()), None


PART = Part(
    HERE,
    "graphs",
    measure,
    table,
    draw,
    (
        Claim("complete", f"D-PSGD in a complete graph is as accurate as FedAvg all along, to {NEAR}", as_fedavg),
        Claim("closer", "clients end farther apart in a ring than in a torus, and there than all linked", closer),
        Claim("tracked", "what clients' own models gain in a ring by gradient tracking", tracked),
        Claim("costs", "what clients send in 150 rounds", costs),
    ),
)
