"""FedIvon's merge by precision against the plain mean, of the same clients, which step by IVON.

The digits, 60 rounds (digits.toml), but with a skew of Dirichlet(0.1): a client has 14 examples, of few digits. h
begins anew in each round, or each client keeps its own. A scheme's h0 and rate are those that are best on the seeds 100
to 102; what is told of it is from the seeds 0 to 4. SGD under FedAvg stands beside. 359 test examples: one is 0.0028.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.optimizers import HERE
from experiments.parts import Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, cell
from fedsim.plots.style import BRIGHT, INK, plain, save
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 103), range(5)
"""Seeds by which h0 and rates are chosen, and those of which is told."""
RATES = ("0.1", "0.3", "1.0")
FRESH = tuple(f"{{ kind = 'ivon', h0 = {h0} }}" for h0 in ("10.0", "100.0", "1000.0"))
KEPT = tuple(rule.replace(" }", ", precision = 'client', beta2 = 0.999 }") for rule in FRESH)


@dataclass(frozen=True)
class Scheme:
    """A strategy, and what its clients may step by. rules: of `client.optimizer`."""

    label: str
    strategy: str
    rules: tuple[str, ...]


SCHEMES = {
    "sgd": Scheme("SGD, plain mean", "fedavg", ("sgd",)),
    "plain": Scheme("IVON, plain mean", "fedavg", FRESH),
    "merged": Scheme("IVON, merged by precision", "fedivon", FRESH),
    "plain_kept": Scheme("IVON, h kept, plain mean", "fedavg", KEPT),
    "merged_kept": Scheme("IVON, h kept, merged", "fedivon", KEPT),
}


@dataclass(frozen=True, eq=False)
class Measured:
    """A scheme: its rule and rate, and the accuracies with them after the last round, [5], 0 of what had diverged."""

    rule: str
    lr: str
    final: Numbers


Results = Mapping[str, Measured]


def measure(
    out: Path,
    *,
    rounds: int | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, first what chooses, and read it all. FedsimError: a run failed.

    rounds: of every run, instead of the file's.
    """
    settings = ("partition.alpha=0.1", "partition.fill=steal", *(() if rounds is None else (f"rounds={rounds}",)))

    def points(name: str, rule: str, lr: str, seeds: Sequence[int]) -> list[Point]:
        scheme = SCHEMES[name]
        place = out / name / f"{scheme.rules.index(rule)}-{lr}"
        given = (f"strategy={scheme.strategy}", f"client.optimizer={rule}", f"client.lr={lr}", *settings)
        return expand([HERE / "digits.toml"], out=place, grid={}, seeds=seeds, overrides=given)

    tried = {name: [(rule, lr) for rule in scheme.rules for lr in RATES] for name, scheme in SCHEMES.items()}
    every = {name: [points(name, *one, CHOOSING) for one in ones] for name, ones in tried.items()}
    carry_out([one for own in every.values() for one in own], workers, on_done)
    best = {name: tried[name][int(np.argmax([accuracies(one).mean() for one in own]))] for name, own in every.items()}
    told = {name: points(name, *one, TOLD) for name, one in best.items()}
    carry_out(told.values(), workers, on_done)
    return {name: Measured(*best[name], accuracies(own)) for name, own in told.items()}


def table(results: Results) -> Table:
    """A row a scheme."""
    laid = Table(show_edge=False, caption="±: one sample standard deviation over seeds 0 to 4; rates: of 100 to 102")
    laid.add_column("scheme")
    laid.add_column("rule")
    for heading in ("rate", "test accuracy"):
        laid.add_column(heading, justify="right")
    for name, one in results.items():
        laid.add_row(SCHEMES[name].label, one.rule, one.lr, cell(one.final, 3))
    return laid


def draw(results: Results, path: Path) -> None:
    """Accuracies of each scheme, and lines between those of a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axis, places = figure.subplots(), np.arange(len(results))
    finals = np.array([one.final for one in results.values()])
    axis.plot(places, finals, "o-", color=BRIGHT[0], markersize=3, linewidth=0.8, alpha=0.5)
    axis.plot(places, finals.mean(axis=1), "D", color=INK, markersize=5)
    axis.set_xticks(places, [SCHEMES[name].label.replace(", ", ",\n") for name in results], fontsize=8)
    axis.set_ylabel("test accuracy after 60 rounds", color=INK)
    plain(axis, grid="y")
    save(figure, path)


def gain(results: Results, one: str, other: str) -> tuple[str, bool]:
    """Whether a scheme is better than another by more than the standard error of the difference by seed."""
    difference = results[one].final - results[other].final
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    ends = " against ".join(f"{results[name].final.mean():.3f}" for name in (one, other))
    return f"{ends}: {difference.mean():+.4f}, standard error {error:.4f}", bool(difference.mean() > error)


def beside(results: Results) -> tuple[str, bool]:
    """Whether the best scheme of IVON is above SGD by as much."""
    best = max((name for name in results if name != "sgd"), key=lambda name: float(results[name].final.mean()))
    told, held = gain(results, best, "sgd")
    return f"{SCHEMES[best].label}: {told}", held


PART = Part(
    HERE,
    "merging",
    measure,
    table,
    draw,
    (
        Claim(
            "merge",
            "IVON's clients on digits of Dirichlet(0.1), 60 rounds, h0 and rates of other seeds: FedIvon's merge ends"
            " above the plain mean by more than a standard error",
            lambda results: gain(results, "merged", "plain"),
        ),
        Claim(
            "merge_kept",
            "and so it does where each client keeps its h",
            lambda results: gain(results, "merged_kept", "plain_kept"),
        ),
        Claim("beside_sgd", "and the best of these schemes ends above SGD under FedAvg by as much", beside),
    ),
)
