"""FedAvg, FAL, IBP and MTL-IBP on the digits, attacked within 0.1: accuracy, what PGD leaves of it, and what is sure.

Rates are the best of a grid on the seeds 100 and 101, for each method by what it is for; what is told is from the seeds
0 to 8, with these rates and with one for all. A seed has a test set of its own, by which, and by who has what, it is
about 3 points of PGD's and certified accuracy from others. PGD has 20 steps from one random start. By bounds epsilon is
0 for 5 rounds and grows over the 30 after them; FAL's is at its full size from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.certified import HERE
from experiments.parts import Claim, Part, carry_out
from experiments.studies import Numbers, band, cell
from fedsim.plots.style import INK, plain, save
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 102), range(9)
RATES = ("0.1", "0.3", "0.6", "1.0")
COMMON = "0.3"
"""The rate with which all are compared, too."""
COLUMNS: Mapping[str, tuple[str, str]] = {
    "clean": ("clean", "test_accuracy"),
    "pgd": ("PGD-20", "test_pgd20_accuracy"),
    "ibp": ("certified, IBP", "test_certified_ibp_accuracy"),
    "crown": ("certified, CROWN", "test_certified_crown_accuracy"),
}
"""What is measured: what it is called here, and in a run."""
GROWING = "warm_up = 5, growth = {kind = 'smooth', rounds = 30}"
ONE_STEP = "{kind = 'pgd', epsilon = 0.1, steps = 1, step_size = 1.0}"


@dataclass(frozen=True)
class Way:
    """label: what it is called. settings: how the file is changed. aim: the measure by which its rate is chosen."""

    label: str
    settings: tuple[str, ...]
    aim: str


WAYS: Mapping[str, Way] = {
    "fedavg": Way("FedAvg", (), "clean"),
    "fal": Way(
        "FAL",
        ("client.adversarial={kind = 'standard', attack = {kind = 'pgd', epsilon = 0.1, steps = 7}}",),
        "pgd",
    ),
    "ibp": Way(
        "IBP, kappa 0.5",
        (f"client.adversarial={{kind = 'ibp', epsilon = 0.1, kappa = 0.5, {GROWING}}}",),
        "crown",
    ),
    "mtl_ibp": Way(
        "MTL-IBP, alpha 0.5",
        (f"client.adversarial={{kind = 'mtl_ibp', attack = {ONE_STEP}, alpha = 0.5, {GROWING}}}",),
        "crown",
    ),
}
EXPECTED: Mapping[str, tuple[float, ...]] = {
    "fedavg": (97.0, 62.0, 0.0, 49.3),
    "fal": (96.4, 76.8, 7.3, 61.2),
    "ibp": (95.9, 75.1, 61.6, 68.2),
    "mtl_ibp": (95.8, 76.8, 62.1, 70.3),
}
"""Percent, in the order of `COLUMNS`, of a prototype at the rate 0.3 with another partition; means of three seeds."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A method with the rate that was chosen. curves: of each measure, in percent, [S, points] at `rounds`."""

    label: str
    chosen: str
    rounds: Numbers
    curves: Mapping[str, Numbers]

    def end(self, name: str) -> Numbers:
        """A measure after the last round, [S]."""
        return np.asarray(self.curves[name][:, -1])


@dataclass(frozen=True)
class Results:
    """By method. chosen: with rates of their own. alike: with the common rate."""

    chosen: Mapping[str, Measured]
    alike: Mapping[str, Measured]


def runs(name: str, rate: str, seeds: Sequence[int], out: Path) -> list[Point]:
    """A method's runs with a rate, seed by seed."""
    found = list[Point]()
    for seed in seeds:
        overrides = (f"client.lr={rate}", f"problem.dataset={{kind = 'digits', split_seed = {seed}}}")
        place = out / name / rate / str(seed)
        found += expand([HERE / "digits.toml"], out=place, seeds=[seed], overrides=(*overrides, *WAYS[name].settings))
    return found


def measured(name: str, rate: str, points: Sequence[Point]) -> Measured:
    """What runs came to; a run that has diverged to nothing."""
    rows = [[row for row in open_run(point.folder).history.rows if "test_pgd20_accuracy" in row] for point in points]
    whole = max(rows, key=len)
    rounds = np.array([row["round"] for row in whole], dtype=np.float64)
    curves = {
        kind: np.array([[100.0 * row[column] for row in one] + [0.0] * (len(whole) - len(one)) for one in rows])
        for kind, (_, column) in COLUMNS.items()
    }
    return Measured(WAYS[name].label, rate, rounds, curves)


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    tried = {name: {rate: runs(name, rate, CHOOSING, out) for rate in RATES} for name in WAYS}
    carry_out([points for rates in tried.values() for points in rates.values()], workers, on_done)
    chosen = {
        name: max(RATES, key=lambda rate: float(measured(name, rate, tried[name][rate]).end(WAYS[name].aim).mean()))
        for name in WAYS
    }
    told = {
        rate: {name: runs(name, chosen[name] if rate is None else rate, TOLD, out) for name in WAYS}
        for rate in (None, COMMON)
    }
    for group in told.values():  # one after the other, for a rate of one's own may be the common one
        carry_out(group.values(), workers, on_done)
    return Results(
        {name: measured(name, chosen[name], points) for name, points in told[None].items()},
        {name: measured(name, COMMON, points) for name, points in told[COMMON].items()},
    )


def table(results: Results) -> Table:
    """A row a method and rate."""
    laid = Table(show_edge=False, caption=f"percent; ±: one sample standard deviation, seeds 0 to {len(TOLD) - 1}")
    for heading in ("method", "lr"):
        laid.add_column(heading)
    for label, _ in COLUMNS.values():
        laid.add_column(label, justify="right")
    for rows in (results.chosen, results.alike):
        for row in rows.values():
            laid.add_row(row.label, row.chosen, *(cell(row.end(name), 1) for name in COLUMNS))
    return laid


def draw(results: Results, path: Path) -> None:
    """Each measure against rounds, a line a method, with rates of their own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    for axis, (name, (label, _)) in zip(figure.subplots(1, len(COLUMNS), sharey=True), COLUMNS.items(), strict=True):
        for number, row in enumerate(results.chosen.values()):
            band(axis, number, row.label, row.rounds, row.curves[name])
        axis.set_xlabel("round", color=INK)
        axis.set_title(label, color=INK, fontsize=10)
        axis.set_ylim(0.0, 100.0)
        plain(axis, grid="both")
    figure.axes[0].set_ylabel("test accuracy, percent", color=INK)
    figure.axes[2].legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
    save(figure, path)


def _means(rows: Mapping[str, Measured], kind: str) -> dict[str, float]:
    return {name: float(row.end(kind).mean()) for name, row in rows.items()}


def _words(means: Mapping[str, float]) -> str:
    return ", ".join(f"{WAYS[name].label} {mean:.1f}" for name, mean in means.items())


def _apart(rows: Mapping[str, Measured], kind: str) -> Numbers:
    return np.asarray(rows["mtl_ibp"].end(kind) - rows["fal"].end(kind))


def _points(values: Numbers) -> str:
    return f"{values.mean():+.1f} points ({', '.join(f'{one:+.1f}' for one in values)})"


def bounded(results: Results) -> tuple[str, bool]:
    """Whether training by bounds is what intervals can be sure of."""
    means = _means(results.alike, "ibp")
    held = min(means["ibp"], means["mtl_ibp"]) >= 55.0 and max(means["fedavg"], means["fal"]) <= 15.0
    return _words(means), held


def attacked(results: Results) -> tuple[str, bool]:
    """Whether MTL-IBP withstands attacks as FAL does."""
    apart = _apart(results.alike, "pgd")
    return _points(apart), bool(apart.mean() >= -3.0)


def surer(results: Results) -> tuple[str, bool]:
    """Whether more of MTL-IBP is sure than of FAL, by the better bound."""
    apart = _apart(results.alike, "crown")
    return _points(apart), bool(apart.mean() >= 4.0)


def clean(results: Results) -> tuple[str, bool]:
    """Whether all of them have learnt the digits."""
    means = _means(results.alike, "clean")
    return _words(means), min(means.values()) >= 93.0


def own_rates(results: Results) -> tuple[str, None]:
    """What of that is left where each has its own rate."""
    pgd, crown = (_points(_apart(results.chosen, kind)) for kind in ("pgd", "crown"))
    rates = ", ".join(f"{row.label} {row.chosen}" for row in results.chosen.values())
    words = f"{rates}; MTL-IBP less FAL: PGD-20 {pgd}, certified by CROWN {crown}"
    return f"{words}; certified by IBP: {_words(_means(results.chosen, 'ibp'))}", None


def expected(results: Results) -> tuple[str, None]:
    """How far the means are from those of the prototype."""
    words = []
    for name, given in EXPECTED.items():
        apart = [float(results.alike[name].end(kind).mean()) - one for kind, one in zip(COLUMNS, given, strict=True)]
        words.append(f"{WAYS[name].label} {' / '.join(f'{one:+.1f}' for one in apart)}")
    return "; ".join(words), None


ALIKE = f"lr {COMMON}"
PART = Part(
    HERE,
    "digits",
    measure,
    table,
    draw,
    (
        Claim(
            "bounded",
            f"{ALIKE}: by IBP at least 55 % of IBP and MTL-IBP are certified, at most 15 % of FedAvg and FAL",
            bounded,
        ),
        Claim("attacked", f"{ALIKE}: PGD-20 accuracy of MTL-IBP is at most 3 points below FAL's", attacked),
        Claim("surer", f"{ALIKE}: by CROWN at least 4 points more of MTL-IBP are certified than of FAL", surer),
        Claim("clean", f"{ALIKE}: clean accuracy of all four is at least 93 %", clean),
        Claim("own_rates", "the same where each method has the rate that is best for what it is for", own_rates),
        Claim("expected", f"{ALIKE}: clean / PGD-20 / certified by IBP / by CROWN, less a prototype's", expected),
    ),
)
