"""Ten of 100 clients reply in a round: what compressors of replies cost where most memories wait.

The server's learning rate of each way is the best of a grid on the seed 100; what is told is from the seeds 0
to 2. Clients' rate is that of `compression.toml`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.parts import Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, band, cell, picture
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

HERE = Path(__file__).parent
CHOOSING, TOLD = range(100, 101), range(3)
RATES = ("0.1", "0.3", "1.0")
TOP = "{kind='top_k', ratio=0.01}"
ADDED = "strategy.kind=ef21"
PLAIN, OWING, LOSSY = "plain", "EF14, top 1 %", "top 1 %"


def through(*listed: str) -> str:
    """The override that has replies go through transforms."""
    return f"transforms=[{', '.join(listed)}]"


WAYS: Mapping[str, tuple[str, ...]] = {
    PLAIN: (),
    LOSSY: (through(TOP),),
    OWING: (through("{kind='ef14'}", TOP),),
    "EF14 that fades, top 1 %": (through("{kind='ef14', decay=0.98}", TOP),),
    "EF21, top 1 %": (ADDED, through("{kind='ef21', arrives='increment'}", TOP)),
    "EF21 by estimates, top 1 %": (through("{kind='ef21'}", TOP),),
    "EControl, top 1 %": (ADDED, through("{kind='econtrol', eta=0.1, arrives='increment'}", TOP)),
    "random 1 %": (through("{kind='random_k', ratio=0.01}"),),
    "QSGD, 4 levels": (through("{kind='qsgd', levels=4, code='elias'}"),),
}
"""How a file is changed."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A way with the rate that was chosen for it. curves: of each seed, rounds and test accuracies, [2, T].

    ends: test accuracies after the last round, [S]. each: bytes of one reply, mean over all.
    """

    rate: str
    curves: Sequence[Numbers]
    ends: Numbers
    each: float


Results = Mapping[str, Measured]


def runs(way: str, rate: str, seeds: Sequence[int], out: Path) -> list[Point]:
    """A way's runs with a rate, seed by seed."""
    place = out / way.replace(" ", "_").replace("%", "percent").replace(",", "") / rate
    overrides = (*WAYS[way], f"strategy.server_lr={rate}")
    return expand([HERE / "participation.toml"], out=place, seeds=seeds, overrides=overrides)


def measure(out: Path, *, workers: int | None = None, on_done: Callable[[Outcome], None] | None = None) -> Results:
    """Run what is not finished in `out`, and read it all. FedsimError: a run failed."""
    tried = {way: {rate: runs(way, rate, CHOOSING, out) for rate in RATES} for way in WAYS}
    carry_out([points for rates in tried.values() for points in rates.values()], workers, on_done)
    chosen = {way: max(RATES, key=lambda rate: accuracies(tried[way][rate]).mean()) for way in WAYS}
    told = {way: runs(way, rate, TOLD, out) for way, rate in chosen.items()}
    carry_out(told.values(), workers, on_done)
    return {
        way: Measured(chosen[way], [curve(point) for point in points], accuracies(points), sent(points))
        for way, points in told.items()
    }


def curve(point: Point) -> Numbers:
    """Rounds and test accuracies of a run."""
    rows = open_run(point.folder).history.rows
    return np.array([(row["round"], row["test_accuracy"]) for row in rows if row.get("test_accuracy") is not None]).T


def sent(points: Sequence[Point]) -> float:
    """Bytes of one reply, mean over those of all runs."""
    rows = [row for point in points for row in open_run(point.folder).history.rows]
    return float(sum(row["bytes_up"] for row in rows) / sum(row["clients"] for row in rows))


def table(results: Results) -> Table:
    """A row a way."""
    laid = Table(show_edge=False, caption=f"±: one sample standard deviation over seeds 0 to {len(TOLD) - 1}")
    for heading in ("replies go through", "server_lr"):
        laid.add_column(heading)
    for heading in ("bytes of one", "times fewer", "after 100 rounds", "after 300"):
        laid.add_column(heading, justify="right")
    for way, row in results.items():
        early = np.array([np.interp(100, *own) for own in row.curves])
        fewer = results[PLAIN].each / row.each
        laid.add_row(way, row.rate, f"{row.each:,.0f}", f"{fewer:.1f}", cell(early, 3), cell(row.ends, 3))
    return laid


def draw(results: Results, path: Path) -> None:
    """Test accuracy against rounds, mean over the seeds, a line a way."""
    with picture(path, "rounds of ten clients", "test accuracy", size=(7.2, 4.2), letters=8) as axis:
        for number, (way, row) in enumerate(results.items()):
            band(axis, number, way, row.curves[0][0], np.array([own[1] for own in row.curves]))
        axis.set_ylim(bottom=0.6)


def near(results: Results) -> tuple[str, bool]:
    """Whether feedback ends near plain replies at few of their bytes, and more than what goes without does."""
    asked = (PLAIN, OWING, LOSSY)
    ends = {way: float(results[way].ends.mean()) for way in asked}
    fewer = results[PLAIN].each / results[OWING].each
    words = "; ".join(f"{way} {cell(results[way].ends, 3)}" for way in asked)
    held = ends[OWING] >= ends[PLAIN] - 0.01 and fewer >= 50 and ends[LOSSY] < ends[PLAIN] - 0.01
    return f"{words}; at 1/{fewer:.0f} of the bytes", held


def others(results: Results) -> tuple[str, None]:
    """Where all ways end."""
    return ", ".join(f"{way} {cell(row.ends, 3)}" for way, row in results.items()), None


PART = Part(
    HERE,
    "participation",
    measure,
    table,
    draw,
    (
        Claim(
            "few_clients",
            "ten of 100 clients a round: the largest 1 % of each reply with EF14 end at most a point below plain "
            "replies, at most 1/50 of whose bytes they take; without feedback they end more than a point below",
            near,
        ),
        Claim("few_clients_others", "ten of 100 clients a round: test accuracy after 300 rounds of all ways", others),
    ),
)
