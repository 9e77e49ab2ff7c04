"""What rules of a step cost: `python -m experiments.benchmarks.optimizers`, in some three minutes.

The digits, 100 clients with batches of 4, on one core. Every rule takes rounds in turn with plain SGD under the same
executor, so that a machine that slows down slows both: told is the median over the turns of the rule's time to that of
the round of plain SGD before it. Rules that are not compiled step one by one under `fused`, too, where gradients are
those of a stack; they are told under `stacked` alone.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.engine import Fedsim
from experiments.benchmarks.peers.work import Work
from experiments.benchmarks.peers.works import digits
from fedsim.core import plugins
from fedsim.parallel.cores import at_most

SMALL = 1e-4
"""The learning rate of all: rules that diverge would be left out of rounds."""


def timed(engine: Fedsim) -> float:
    """Seconds of a round."""
    before = time.perf_counter()
    engine.round()
    return time.perf_counter() - before


def beside(work: Work, executor: str, rule: str, turns: int) -> tuple[float, float]:
    """Milliseconds of a round by a rule, and the median of its ratios to plain SGD's."""
    plain, own = Fedsim(work, executor), Fedsim(work, executor, optimizer=rule)
    for engine in (plain, own):
        engine.start()
        engine.round()
    pairs = [(timed(plain), timed(own)) for _ in range(turns)]
    return 1000.0 * statistics.median(own for _, own in pairs), statistics.median(own / one for one, own in pairs)


def compiled(rule: str) -> bool:
    """Whether a rule is."""
    return plugins.make("optimizers", rule, "optimizer").compiled is not None


def table_of(work: Work, rules: list[str], turns: int) -> Table:
    """A row a rule; plain SGD is 1."""
    table = Table(title=f"{work.name}: a round by each rule, one core")
    table.add_column("rule")
    for executor in ("stacked", "fused"):
        table.add_column(f"{executor}, ms", justify="right")
        table.add_column("times plain SGD", justify="right")
    for rule in rules:
        cells = []
        for executor in ("stacked", "fused"):
            if executor == "fused" and not compiled(rule):
                cells += ["", ""]
                continue
            took, ratio = beside(work, executor, rule, turns)
            cells += [f"{took:.1f}", f"{ratio:.2f}"]
        table.add_row(rule, *cells)
    return table


def main(
    turns: Annotated[int, typer.Option(min=1, help="Rounds of each rule.")] = 9,
    only: Annotated[str | None, typer.Option(help="Rules, as in adam,dog; by default all that are installed.")] = None,
) -> None:
    """Print what rounds take."""
    rules = plugins.ours("optimizers") if only is None else only.split(",")
    with at_most(1):
        Console(width=100).print(table_of(replace(digits(), lr=SMALL), rules, turns))


if __name__ == "__main__":
    typer.run(main)
