"""Every rule over learning rates: how good it gets, and how near to its best rate one has to be.

The digits, 60 rounds (digits.toml), every rule on a grid of half decades. A rule's rate is the best of the grid on the
seeds 100 to 102; what is told of it is from the seeds 0 to 4, of which each has another first model, another deal and
other batches. Its range is that of the neighbouring rates at which the mean accuracy of seeds 0 to 4 is within two
points of that at the chosen rate, in decades. For rules that find their own rate the start value is the knob instead.
359 test examples: one is 0.0028.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.optimizers import HERE
from experiments.parts import NEAR, Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, cell
from fedsim.core.errors import InputError
from fedsim.plots.style import BRIGHT, INK, STYLES, plain, save
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 103), range(5)
"""Seeds by which rates are chosen, and those of which is told."""


@dataclass(frozen=True)
class Rule:
    """A rule and its grid. optimizer: as an experiment has it. knob: the option that the grid is of."""

    label: str
    optimizer: str
    grid: tuple[float, ...]
    knob: str = "client.lr"


def decades(low: float, steps: int) -> tuple[float, ...]:
    """So many half decades from `low`, 1 or 3 of some decade: 0.001, 0.003, 0.01, ..."""
    first = round(2.0 * math.log10(low))
    return tuple(float(f"{10.0 ** (place / 2):.1g}") for place in range(first, first + steps))


START = "client.optimizer.reps_rel"
SMALL, LARGE = decades(3e-4, 6), decades(1e-2, 6)
RULES = {
    "sgd": Rule("SGD", "sgd", LARGE),
    "momentum": Rule("SGD, momentum 0.9", "{ kind = 'sgd', momentum = 0.9 }", decades(1e-3, 6)),
    "nesterov": Rule("SGD, Nesterov 0.9", "{ kind = 'sgd', momentum = 0.9, nesterov = true }", decades(1e-3, 6)),
    "normalised": Rule("normalised", "normalised", LARGE),
    "adam": Rule("Adam", "adam", SMALL),
    "amsgrad": Rule("AMSGrad", "amsgrad", SMALL),
    "adabelief": Rule("AdaBelief", "{ kind = 'adabelief', epsilon = 1e-12 }", SMALL),
    "diffgrad": Rule("diffGrad", "diffgrad", decades(1e-3, 6)),
    "adagrad": Rule("AdaGrad", "adagrad", decades(1e-3, 6)),
    "adagrad_norm": Rule("AdaGrad-Norm", "adagrad_norm", decades(3e-2, 6)),
    "lion": Rule("Lion", "lion", SMALL),
    "dog": Rule("DoG, knob: start", "dog", decades(1e-3, 6), START),
    "l_dog": Rule("L-DoG, knob: start", "l_dog", decades(1e-3, 6), START),
    "a_dog": Rule("A-DoG, knob: start", "a_dog", decades(1e-3, 6), START),
    "u_dog": Rule("U-DoG, knob: start", "u_dog", decades(1e-3, 6), START),
    "sania": Rule("SANIA", "sania", LARGE),
    "induced": Rule("induced metric, xi 1", "{ kind = 'induced', xi = 1.0 }", decades(3e-2, 6)),
    "muon": Rule("Muon, all matrices", "{ kind = 'muon', last = true }", decades(1e-2, 6)),
    "steepest": Rule("steepest, spectral", "{ kind = 'steepest', norm = 'spectral' }", LARGE),
    "lanton": Rule("LANTON", "lanton", decades(1e-3, 6)),
    "frugal": Rule("FRUGAL", "frugal", SMALL),
    "adahessian": Rule("AdaHessian, epsilon 0.1", "{ kind = 'adahessian', epsilon = 0.1 }", decades(1e-2, 4)),
    "oasis": Rule("OASIS, knob: first step", "oasis", decades(1e-3, 6)),
    "ai_sarah": Rule("AI-SARAH", "ai_sarah", (0.1, 0.3, 1.0)),
    "egn": Rule("Gauss-Newton (EGN)", "egn", (0.1, 0.3, 1.0)),
    "sso": Rule("SSO", "sso", decades(1e-3, 5)),
    "ivon": Rule("IVON", "ivon", decades(1e-3, 6)),
}


@dataclass(frozen=True, eq=False)
class Measured:
    """A rule over its grid [G], after the last round; where a run had diverged the accuracy is 0.

    choosing: accuracies of the seeds that choose, [G, 3]; told: of those that are told of, [G, 5].
    """

    grid: tuple[float, ...]
    choosing: Numbers
    told: Numbers

    @property
    def chosen(self) -> int:
        """The place in the grid of the best mean accuracy of the seeds that choose."""
        return int(self.choosing.mean(axis=1).argmax())

    @property
    def final(self) -> Numbers:
        """Accuracies at the chosen value, [5]."""
        final: Numbers = self.told[self.chosen]
        return final

    @property
    def near(self) -> tuple[float, float]:
        """The lowest and the highest value around the chosen one at which it is within `NEAR` of what it is there."""
        means, low, high = self.told.mean(axis=1), self.chosen, self.chosen
        there = means >= means[self.chosen] - NEAR
        while low > 0 and there[low - 1]:
            low -= 1
        while high < len(there) - 1 and there[high + 1]:
            high += 1
        return self.grid[low], self.grid[high]

    @property
    def breadth(self) -> float:
        """How many decades that is."""
        low, high = self.near
        return float(np.log10(high / low))


Results = Mapping[str, Measured]


def points(name: str, out: Path, settings: Sequence[str] = ()) -> list[Point]:
    """A rule's runs, value by value and seed by seed."""
    rule = RULES[name]
    grid = {rule.knob: [f"{value:g}" for value in rule.grid]}
    overrides = (f"client.optimizer={rule.optimizer}", *settings)
    return expand([HERE / "digits.toml"], out=out / name, grid=grid, seeds=(*CHOOSING, *TOLD), overrides=overrides)


def measure(
    out: Path,
    *,
    rules: Sequence[str] = tuple(RULES),
    rounds: int | None = None,
    workers: int | None = None,
    on_done: Callable[[Outcome], None] | None = None,
) -> Results:
    """Run what is not finished in `out`, one run folder a seed, and read it all. FedsimError: a run failed.

    rounds: of every run, instead of the file's.
    """
    for name in rules:
        if name not in RULES:
            raise InputError("rules", name, f"name one of: {', '.join(RULES)}")
    every = {name: points(name, out, () if rounds is None else (f"rounds={rounds}",)) for name in rules}
    carry_out(every.values(), workers, on_done)
    return {name: _read(RULES[name], own) for name, own in every.items()}


def _read(rule: Rule, own: Sequence[Point]) -> Measured:
    """Of the runs of a rule."""
    accuracy = accuracies(own).reshape(len(rule.grid), len(CHOOSING) + len(TOLD))
    return Measured(rule.grid, accuracy[:, : len(CHOOSING)], accuracy[:, len(CHOOSING) :])


def table(results: Results) -> Table:
    """A row a rule, the best first."""
    laid = Table(show_edge=False, caption="±: one sample standard deviation over seeds 0 to 4; rates: of 100 to 102")
    laid.add_column("rule")
    for heading in ("chosen", "accuracy", "within 2 points of that", "decades"):
        laid.add_column(heading, justify="right")
    for name, one in sorted(results.items(), key=lambda item: -item[1].final.mean()):
        low, high = one.near
        chosen = f"{one.grid[one.chosen]:g}"
        laid.add_row(RULES[name].label, chosen, cell(one.final, 3), f"{low:g} to {high:g}", f"{one.breadth:.1f}")
    return laid


def draw(results: Results, path: Path) -> None:
    """Accuracy at each rule's best, and the range around it, a line a rule."""
    from matplotlib.figure import Figure

    order = sorted(results, key=lambda name: results[name].final.mean())
    figure = Figure(figsize=(9.0, 0.28 * len(order) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(order))
    for place, name in zip(places, order, strict=True):
        one = results[name]
        left.plot(one.final, np.full(len(one.final), place), "o", color=BRIGHT[0], markersize=3, alpha=0.5)
        left.plot([one.final.mean()], [place], "D", color=INK, markersize=4)
        low, high = one.near
        right.plot([low, high], [place, place], STYLES[0], color=BRIGHT[0], linewidth=4, solid_capstyle="butt")
        right.plot([one.grid[0], one.grid[-1]], [place, place], color=INK, linewidth=0.5, alpha=0.4)
        right.plot([one.grid[one.chosen]], [place], "D", color=INK, markersize=4)
    left.set_yticks(places, [RULES[name].label for name in order], fontsize=8)
    left.set_xlabel("test accuracy after 60 rounds, seeds 0 to 4", color=INK)
    right.set_xscale("log")
    right.set_xlabel("rates within 2 points of the best, of those tried", color=INK)
    for axis in (left, right):
        plain(axis, grid="x")
    save(figure, path)


def _told(results: Results, names: Sequence[str]) -> str:
    return ", ".join(f"{RULES[name].label} {results[name].final.mean():.3f}" for name in names)


def muon_ahead(results: Results) -> tuple[str, bool]:
    """Whether no rule is better than Muon, mean over the seeds."""
    order = sorted(results, key=lambda name: -results[name].final.mean())
    return _told(results, order[:4]), order[0] == "muon"


def adaptive_behind(results: Results) -> tuple[str, bool]:
    """Whether Adam's kind ends below plain SGD."""
    kind = ("adam", "amsgrad", "adabelief", "diffgrad", "lion")
    return _told(results, ("sgd", *kind)), all(results[one].final.mean() < results["sgd"].final.mean() for one in kind)


def no_rate(results: Results) -> tuple[str, bool]:
    """Whether rules with their one published or standard setting come within two points of tuned SGD."""
    standard = {"sania": 1.0, "dog": 1e-2, "a_dog": 1e-2}
    found = {name: results[name].told[results[name].grid.index(value)].mean() for name, value in standard.items()}
    best = results["sgd"].final.mean()
    said = ", ".join(f"{RULES[name].label.split(',')[0]} {value:.3f}" for name, value in found.items())
    return f"{said}; SGD tuned {best:.3f}", all(value >= best - NEAR for value in found.values())


def forgiving(results: Results) -> tuple[str, bool | None]:
    """How broad the ranges are, the broadest first; nothing is demanded."""
    order = sorted(results, key=lambda name: -results[name].breadth)
    return ", ".join(f"{RULES[name].label} {results[name].breadth:.1f}" for name in order), None


PART = Part(
    HERE,
    "rules",
    measure,
    table,
    draw,
    (
        Claim("muon_ahead", "digits, 60 rounds, rates of other seeds: no rule ends above Muon", muon_ahead),
        Claim("adaptive_behind", "and every rule of Adam's kind ends below plain SGD", adaptive_behind),
        Claim(
            "no_rate",
            "and SANIA, DoG and A-DoG at one setting, lr 1 and a start of 0.01, come within 2 points of tuned SGD",
            no_rate,
        ),
        Claim("forgiving", "and decades of rates within 2 points of each rule's best", forgiving),
    ),
)
