"""Batch sizes that the server decides by a norm test, beside fixed ones, at equal examples.

The digits, 60 rounds (digits.toml) of five epochs, so that every scheme sees the same examples; 20 clients of 72 on
average, of which 5 work in a round, for more of a batch than 100 clients of 14 have; their labels are drawn from
Dir(0.1), or are alike. Adaptive sizes begin at 4 and end at 64. A scheme's rate is the best of a grid of half decades
on the seeds 100 to 102; what is told of it is from the seeds 0 to 4. 359 test examples: one is 0.0028.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.optimizers import HERE
from experiments.parts import NEAR, Claim, Part, accuracies, carry_out
from experiments.studies import Numbers, band, cell
from fedsim.plots.style import INK, plain, save
from fedsim.running.stored import open_run
from fedsim.running.sweep import Outcome, Point, expand

CHOOSING, TOLD = range(100, 103), range(5)
"""Seeds by which rates are chosen, and those of which is told."""
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
CLIENTS = 20
PARTITIONS = {
    "skewed": f"{{ kind = 'dirichlet', clients = {CLIENTS}, alpha = 0.1 }}",
    "alike": f"{{ kind = 'iid', clients = {CLIENTS} }}",
}


def norm_test(eta: float, across: str) -> str:
    """The setting of a rule."""
    return f"strategy.batch_rule={{ kind = 'norm_test', eta = {eta:g}, across = '{across}', max_batch = 64 }}"


SCHEMES = {
    "fixed_4": ("4", ("client.batch_size=4",)),
    "fixed_16": ("16", ("client.batch_size=16",)),
    "fixed_64": ("64", ("client.batch_size=64",)),
    "within": ("norm test, eta 2, within clients", ("client.batch_size=4", norm_test(2.0, "within"))),
    "total": ("norm test, eta 2, in total", ("client.batch_size=4", norm_test(2.0, "total"))),
    "within_half": ("norm test, eta 0.5, within clients", ("client.batch_size=4", norm_test(0.5, "within"))),
}
"""What they are called, and the settings in which they differ."""
ADAPTIVE = ("within", "total", "within_half")
LATE = 20
"""Rounds at the end over which it is looked at what the test wants."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A scheme on a partition. rate: the chosen one. accuracy: after the last round, [S], 0 where a run had diverged.

    size, wanted: of an adaptive one the clients' mean batch, and V / (eta^2 N) as it is, [S, rounds]; else empty.
    """

    rate: float
    accuracy: Numbers
    size: Numbers
    wanted: Numbers

    @property
    def asked(self) -> float:
        """What the test wants in the last rounds, the median over them and the seeds."""
        return float(np.median(self.wanted[:, -LATE:]))


Results = Mapping[str, Mapping[str, Measured]]
"""By partition and scheme."""


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

    def points(partition: str, scheme: str, rates: Sequence[float], seeds: Sequence[int]) -> list[Point]:
        own = (f"partition={PARTITIONS[partition]}", "selection.count=5", *SCHEMES[scheme][1], *settings)
        grid = {"client.lr": [f"{rate:g}" for rate in rates]}
        return expand([HERE / "digits.toml"], out=out / partition / scheme, grid=grid, seeds=seeds, overrides=own)

    every = [(partition, scheme) for partition in PARTITIONS for scheme in SCHEMES]
    tried = {place: points(*place, RATES, CHOOSING) for place in every}
    carry_out(tried.values(), workers, on_done)
    means = {place: accuracies(own).reshape(len(RATES), -1).mean(axis=1) for place, own in tried.items()}
    rates = {place: RATES[int(own.argmax())] for place, own in means.items()}
    told = {place: points(*place, [rates[place]], TOLD) for place in every}
    carry_out(told.values(), workers, on_done)
    return {
        partition: {scheme: _read(rates[partition, scheme], told[partition, scheme]) for scheme in SCHEMES}
        for partition in PARTITIONS
    }


def _read(rate: float, points: Sequence[Point]) -> Measured:
    """Of the runs of a scheme that are told of."""
    histories = [open_run(point.folder).history for point in points]

    def curves(column: str) -> Numbers:
        if any(column not in history.columns for history in histories):
            return np.empty((len(histories), 0))
        return np.array([history.to_numpy(column) for history in histories])

    return Measured(rate, accuracies(points), curves("batch_size"), curves("wanted_batch"))


def table(results: Results) -> Table:
    """A row a partition and scheme."""
    caption = (
        "test accuracy after 60 rounds; ±: one sample standard deviation over seeds; wanted: median of the last 20"
    )
    laid = Table(show_edge=False, caption=caption)
    for heading in ("clients", "batch size"):
        laid.add_column(heading)
    for heading in ("rate", "accuracy", "mean batch", "wanted"):
        laid.add_column(heading, justify="right")
    for partition, own in results.items():
        for scheme, one in own.items():
            sizes = (f"{one.size.mean():.1f}", f"{one.asked:.1f}") if scheme in ADAPTIVE else ("", "")
            laid.add_row(partition, SCHEMES[scheme][0], f"{one.rate:g}", cell(one.accuracy, 3), *sizes)
    return laid


def draw(results: Results, path: Path) -> None:
    """Above what each scheme comes to, below the sizes that the tests want, a column a partition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    above, below = figure.subplots(2, len(results), sharey="row")
    for top, bottom, (partition, own) in zip(above, below, results.items(), strict=True):
        for place, one in enumerate(own.values()):
            top.plot(one.accuracy, np.full(len(one.accuracy), place), "o", color=INK, markersize=3, alpha=0.4)
            top.plot([one.accuracy.mean()], [place], "D", color=INK, markersize=4)
        top.set_yticks(range(len(own)), [SCHEMES[scheme][0] for scheme in own], fontsize=8)
        top.set_xlabel(f"test accuracy, clients {partition}", color=INK)
        for place, scheme in enumerate(ADAPTIVE):
            wanted = own[scheme].wanted
            band(bottom, place, SCHEMES[scheme][0], np.arange(1, wanted.shape[1] + 1), np.log2(wanted))
        bottom.axhline(6.0, color=INK, linewidth=0.6, alpha=0.6)
        bottom.set_xlabel("round", color=INK)
        for axis in (top, bottom):
            plain(axis, grid="both")
    below[0].set_ylabel("log2 of the batch that the test wants", color=INK)
    below[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    save(figure, path)


def _small_wins(results: Results) -> tuple[str, bool]:
    found = {name: {scheme: one.accuracy.mean() for scheme, one in own.items()} for name, own in results.items()}
    said = "; ".join(
        f"{name}: " + ", ".join(f"{SCHEMES[scheme][0]} {mean:.3f}" for scheme, mean in own.items())
        for name, own in found.items()
    )
    return said, all(own["fixed_4"] >= max(own.values()) - 0.01 for own in found.values())


def _keeps_up(results: Results) -> tuple[str, bool]:
    gaps = {name: own["fixed_4"].accuracy.mean() - own["within"].accuracy.mean() for name, own in results.items()}
    sizes = {name: own["within"].size.mean() for name, own in results.items()}
    said = ", ".join(f"{name} {gap:+.3f} at a mean batch of {sizes[name]:.1f}" for name, gap in gaps.items())
    return said, all(gap <= NEAR for gap in gaps.values())


def _skew(results: Results) -> tuple[str, bool]:
    ratio = {name: own["total"].asked / own["within"].asked for name, own in results.items()}
    said = ", ".join(f"{name} {value:.2f}" for name, value in ratio.items())
    return said, ratio["skewed"] >= 1.5 and abs(ratio["alike"] - 1.0) <= 0.2


def _jumps(results: Results) -> tuple[str, bool]:
    sizes = {name: own["within_half"].asked for name, own in results.items()}
    return ", ".join(f"{name} {size:.0f}" for name, size in sizes.items()), min(sizes.values()) >= 64.0


def _grows(results: Results) -> tuple[str, bool]:
    asked = {name: own["within"].asked for name, own in results.items()}
    said = ", ".join(f"{name} {size:.1f}" for name, size in asked.items())
    return said, asked["alike"] > asked["skewed"]


PART = Part(
    HERE,
    "batch_sizes",
    measure,
    table,
    draw,
    (
        Claim(
            "small_wins",
            "digits, 60 rounds, rates of other seeds: at equal examples no scheme is a point better than batches of 4",
            _small_wins,
        ),
        Claim("keeps_up", "and the norm test within clients at eta 2 is at most 2 points below that", _keeps_up),
        Claim(
            "skew",
            "in the last 20 rounds the test in total wants at least 1.5 times the batch of that within clients where"
            " they are skewed, and no more than 1.2 times where they are alike",
            _skew,
        ),
        Claim("grows", "but where clients are alike the test wants more than where they are skewed", _grows),
        Claim("jumps", "and eta 0.5, of the published scripts, wants 64 or more in the last 20 rounds", _jumps),
    ),
)
