"""What private steps cost: `python -m experiments.benchmarks.private`, in some two minutes.

The digits, 100 clients with batches of 4, on one core, under the executor that stacks. Rounds with privacy of single
examples are taken in turn with plain ones, so that a machine that slows down slows both: told is the median over the
turns of their ratio. Beside them is the same in plain PyTorch, one client after the other, whose gradients of single
examples are made by `torch.func.vmap`, or by Opacus where it is installed.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.engine import Fedsim
from experiments.benchmarks.peers.private import PrivateLoop
from experiments.benchmarks.peers.work import Work
from experiments.benchmarks.peers.works import digits
from fedsim.parallel.cores import at_most

CLIP, MULTIPLIER, DELTA = 1.0, 1.0, 1e-3
MOST = 4.0
"""How many plain rounds a private one may take."""


class Engine(Protocol):
    """What takes rounds."""

    def start(self) -> None:
        """Get ready."""

    def round(self) -> None:
        """Take one."""


def engines(work: Work) -> dict[str, Engine]:
    """What is compared, the plain rounds first; what is not installed is left out."""
    base: dict[str, Any] = {"level": "example", "delta": DELTA}
    ways = {
        "stacked": None,
        "stacked, batches by coins": base | {"noise_multiplier": 0.0},
        "stacked, clipped": base | {"clip": CLIP, "noise_multiplier": 0.0},
        "stacked, clipped and noised": base | {"clip": CLIP, "noise_multiplier": MULTIPLIER},
    }
    found: dict[str, Engine] = {name: Fedsim(work, "stacked", privacy=options) for name, options in ways.items()}
    for name, loop in (
        ("vmap, one client at a time", PrivateLoop(work, "vmap", CLIP, MULTIPLIER)),
        ("Opacus, one client at a time", PrivateLoop(work, "opacus", CLIP, MULTIPLIER)),
    ):
        if loop.missing() is None:
            found[name] = loop
    return found


def timed(engine: Engine) -> float:
    """Seconds of a round."""
    before = time.perf_counter()
    engine.round()
    return time.perf_counter() - before


def measured(made: dict[str, Engine], turns: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of a round, and the median of its ratios to plain ones."""
    for engine in made.values():
        engine.start()
        engine.round()
    seconds = [[timed(engine) for engine in made.values()] for _ in range(turns)]
    return {
        name: (
            1000.0 * statistics.median(turn[place] for turn in seconds),
            statistics.median(turn[place] / turn[0] for turn in seconds),
        )
        for place, name in enumerate(made)
    }


def main(turns: Annotated[int, typer.Option(min=1, help="Rounds of each.")] = 9) -> None:
    """Print what rounds take, and whether a private one takes at most four plain ones."""
    with at_most(1):
        found = measured(engines(digits()), turns)
    table = Table(title="digits: a round of 100 clients, one core")
    table.add_column("round")
    table.add_column("ms", justify="right")
    table.add_column("times plain", justify="right")
    for name, (took, ratio) in found.items():
        table.add_row(name, f"{took:.1f}", f"{ratio:.2f}")
    Console(width=100).print(table)
    if found["stacked, clipped and noised"][1] > MOST:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
