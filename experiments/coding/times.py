"""How long 120 jobs take of 64 workers, of whom some are slow for a while, by each scheme with its best parameters.

A worker's round takes 1 + variable * 64 * load seconds, five times that while it is slow. Parameters are the best of a
grid on the traces of the seeds 100 and 101; what is told is from the traces of the seeds 0 to 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.coding import HERE
from experiments.parts import Claim, Part
from experiments.studies import Numbers, cell
from fedsim.coding import (
    Cluster,
    GradientCoding,
    Multiplexed,
    Scheme,
    SelectiveRepeat,
    Timed,
    Uncoded,
    gilbert_elliott,
    simulate,
)
from fedsim.coding.codes import Normal
from fedsim.plots.style import BRIGHT, INK, plain, save
from fedsim.running.sweep import Outcome

WORKERS, JOBS, LONGEST = 64, 120, 10
"""LONGEST: rounds after the last job's own until that is known, at most."""
CHOOSING, TOLD = range(100, 102), range(5)


@dataclass(frozen=True)
class Trace:
    """A setting. enter, leave: chances to become slow and to be so no longer. variable: of `Cluster`."""

    told: str
    enter: float
    leave: float
    variable: float = 0.1

    def slow(self, seed: int) -> np.ndarray:
        """Who is slow in which round."""
        chances = np.random.default_rng(seed).random((JOBS + LONGEST + 1, WORKERS))
        return gilbert_elliott(chances, self.enter, self.leave)


TRACES = {
    "short": Trace("short bursts", 0.02, 0.9),
    "long": Trace("longer bursts", 0.02, 0.5),
    "cheap": Trace("short bursts, work counts little", 0.02, 0.9, 0.02),
}
SCHEMES = {"wait": "waiting for all", "gc": "GC", "sr": "SR-SGC", "m": "M-SGC"}


def normal(seed: int) -> Normal:
    """What a code's factors are drawn by."""
    return np.random.default_rng(seed).standard_normal


def codes(most: int = 10) -> Iterator[tuple[str, Scheme]]:
    """Gradient codes for 1 to so many stragglers, and what they are called."""
    for count in range(1, most + 1):
        yield f"s {count}", GradientCoding.of(WORKERS, count, normal(count))


def designs(name: str) -> Iterator[tuple[str, Scheme]]:
    """What is tried of a scheme, and its parameters in words."""
    if name == "wait":
        yield "", Uncoded.among(WORKERS)
    elif name == "gc":
        yield from codes()
    elif name == "sr":
        for burst, window in ((1, 2), (2, 3), (2, 5)):
            for most in (4, 8, 12):
                design = SelectiveRepeat.designed(WORKERS, burst, window, most, normal(most))
                yield f"B {burst}, W {window}, lambda {most}", design
    else:
        for burst in range(1, 5):
            for window in (burst + 1, burst + 2):
                for most in (6, 10, 14, 18):
                    made = Multiplexed.designed(WORKERS, burst, window, most, normal(most))
                    yield f"B {burst}, W {window}, lambda {most}", made


@dataclass(frozen=True, eq=False)
class Measured:
    """A scheme on a trace, with the parameters that were chosen. seconds: of the seeds, [S]; load times n; waited."""

    chosen: str
    load: float
    seconds: Numbers
    waited: Numbers


Results = Mapping[tuple[str, str], Measured]
"""By trace and scheme."""


def timed(scheme: Scheme, trace: Trace, seeds: Sequence[int]) -> list[Timed]:
    """The jobs on the trace of each seed."""
    return [simulate(scheme, Cluster(variable=trace.variable), trace.slow(seed), JOBS) for seed in seeds]


def measure(
    out: Path,  # noqa: ARG001
    *,
    workers: int | None = None,  # noqa: ARG001
    on_done: Callable[[Outcome], None] | None = None,  # noqa: ARG001
) -> Results:
    """Simulate it all; there is nothing to keep on the disk."""
    found = {}
    for key, trace in TRACES.items():
        for name in SCHEMES:
            tried = list(designs(name))
            best = min(tried, key=lambda one: sum(took.seconds for took in timed(one[1], trace, CHOOSING)))
            took = timed(best[1], trace, TOLD)
            found[key, name] = Measured(
                best[0],
                best[1].load * WORKERS,
                np.array([one.seconds for one in took]),
                np.array([float(one.waited) for one in took]),
            )
    return found


def table(results: Results) -> Table:
    """A row a trace and scheme."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over {len(TOLD)} traces; {JOBS} jobs")
    for heading in ("trace", "scheme", "chosen"):
        laid.add_column(heading)
    for heading in ("load x n", "seconds", "rounds waited for all"):
        laid.add_column(heading, justify="right")
    for (key, name), found in results.items():
        cells = (f"{found.load:.2f}", cell(found.seconds, 1), cell(found.waited, 1))
        laid.add_row(TRACES[key].told, SCHEMES[name], found.chosen, *cells)
    return laid


def draw(results: Results, path: Path) -> None:
    """Bars of seconds, a group a trace, with the traces' dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axis, wide = figure.subplots(), 0.8 / len(SCHEMES)
    for number, (name, told) in enumerate(SCHEMES.items()):
        places = np.arange(len(TRACES)) + (number - (len(SCHEMES) - 1) / 2) * wide
        taken = [results[key, name].seconds for key in TRACES]
        axis.bar(places, [one.mean() for one in taken], 0.9 * wide, color=BRIGHT[number], label=told)
        for place, one in zip(places, taken, strict=True):
            axis.plot(np.full(len(one), place), one, "o", color=INK, markersize=2)
    axis.set_xticks(range(len(TRACES)), [trace.told for trace in TRACES.values()])
    axis.set_ylabel(f"seconds for {JOBS} jobs", color=INK)
    above: dict[str, Any] = {"ncols": len(SCHEMES), "loc": "upper center", "bbox_to_anchor": (0.5, 1.15)}
    axis.legend(frameon=False, fontsize=9, labelcolor=INK, **above)
    plain(axis, grid="y")
    save(figure, path)


def gain(results: Results, key: str, name: str, base: str) -> float:
    """The share of time that a scheme saves, mean over the traces."""
    return float((1 - results[key, name].seconds / results[key, base].seconds).mean())


def faster(results: Results) -> tuple[str, bool]:
    """M-SGC against GC and waiting on short bursts."""
    over, waiting = gain(results, "short", "m", "gc"), gain(results, "short", "m", "wait")
    return f"{100 * over:.1f} % and {100 * waiting:.1f} %", over >= 0.1 and waiting >= 0.4


def elsewhere(results: Results) -> tuple[str, None]:
    """The same of the other traces."""
    found = {TRACES[key].told: gain(results, key, "m", "gc") for key in ("long", "cheap")}
    return "; ".join(f"{told}: {100 * one:.1f} %" for told, one in found.items()), None


def repeated(results: Results) -> tuple[str, bool]:
    """SR-SGC against GC."""
    found = {key: gain(results, key, "sr", "gc") for key in TRACES}
    return "; ".join(f"{TRACES[key].told}: {100 * one:.1f} %" for key, one in found.items()), min(found.values()) > 0


PART = Part(
    HERE,
    "times",
    measure,
    table,
    draw,
    (
        Claim(
            "short_bursts",
            "64 workers, slow 5 times with chances 0.02 and 0.9: M-SGC takes at least 10 % less time than GC, and 40 % "
            "less than waiting for all, mean over 5 traces, parameters of other traces",
            faster,
        ),
        Claim("other_bursts", "how much less than GC where bursts are longer, or work counts a fifth", elsewhere),
        Claim("selective_repeat", "SR-SGC takes less time than GC, on each of the three settings", repeated),
    ),
)
