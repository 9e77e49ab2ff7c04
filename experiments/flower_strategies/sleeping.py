"""Asynchronous strategies over nodes that really sleep: `python -m experiments.flower_strategies.sleeping`.

FedAvg, FedFix and FedBuff in the app `experiments/flower_apps/linear` on Ray, each for some seconds of the wall clock,
with eight nodes that take 0.2 to 2 seconds for an order: accuracy against time in one picture, and how long nodes wait.
And FedFix and FedBuff with four nodes whose replies come half a second apart, from each other or from the end of a
window, on Ray and, in virtual time, on a virtual grid: whose change of which version moved which model is the same.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from experiments.flower_strategies.places import WORK, on_ray, virtually
from experiments.studies import VERDICTS, console
from fedsim.plots.style import BRIGHT, INK, plain, save
from fedsim.running.history import History
from fedsim.running.stored import METRICS

HERE = Path(__file__).parent
METHODS = ("FedAvg", "FedFix", "FedBuff")
SECONDS = (2.0, 1.6, 1.2, 0.9, 0.6, 0.45, 0.3, 0.2)
"""What the eight nodes take; the slowest has the fewest examples."""
DURATION = 12.0
PAIRED = ("FedFix", "FedBuff-2")
APART = (2.5, 3.5, 4.5, 5.5)
"""What the four nodes take: with FedBuff, whose nodes start again at once, arrivals are half a second apart at least,
until second 11; with FedFix they come in the middle of a window.
"""
UNTIL = 9.8
TINY = 1e-6
"""Seconds by which two notes of one time may differ."""
WINDOW = {"FedFix": 1.0, "FedBuff": 0.0}
"""Seconds that a node may wait for its next order, by the strategy: FedFix's window."""
SLACK = 0.1
"""Seconds that it may wait beyond that, as the server sees it. By its own clock it waits longer, by those between two
looks of the server, half a second at most, and by what Ray takes to carry messages.
"""

Use = tuple[int, int, int]
"""A reply that was taken: the node's partition, the version that it was sent, and the version that it moved."""


@dataclass(frozen=True)
class Results:
    """What the runs came to, by method.

    times, accuracies: of its models. waits: the longest between two orders of a node, by the server's trace and by the
    node's own clock. real, virtual: the replies in the order in which they were taken.
    """

    times: Mapping[str, Sequence[float]]
    accuracies: Mapping[str, Sequence[float]]
    waits: Mapping[str, tuple[float, float]]
    real: Mapping[str, Sequence[Use]]
    virtual: Mapping[str, Sequence[Use]]


def measure(out: Path) -> Results:
    """Run what is not finished in `out`, and read it all."""
    config = {"duration": DURATION, "seconds": _text(SECONDS), "pause": max(SECONDS)}
    asleep = out / "asleep"
    if not _done(asleep, METHODS):
        on_ray(len(SECONDS), {"methods": " ".join(METHODS), "out": asleep, **config})
    apart = {"methods": " ".join(PAIRED), "duration": UNTIL}
    if not _done(out / "apart", PAIRED):
        slept = {"seconds": _text(APART), "pause": max(APART)}
        on_ray(len(APART), {**apart, **slept, "out": out / "apart"})
    if not _done(out / "virtual", PAIRED):
        virtually(len(APART), {**apart, "out": out / "virtual"}, dict(enumerate(APART)))
    rows = {name: History(asleep / name / METRICS) for name in METHODS}
    return Results(
        {name: history["time"] for name, history in rows.items()},
        {name: history["test_accuracy"] for name, history in rows.items()},
        {name: (waited(asleep / name), waited_by_nodes(asleep / name)) for name in METHODS},
        {name: uses(out / "apart" / name) for name in PAIRED},
        {name: uses(out / "virtual" / name) for name in PAIRED},
    )


def nobody_idle(results: Results) -> tuple[str, bool]:
    """How long nodes waited, in words, and whether that is what the strategies say."""
    told = (f"{name} {seen:.2f} s, {own:.2f} s by the nodes' clocks" for name, (seen, own) in results.waits.items())
    return "; ".join(told), all(results.waits[name][0] <= most + SLACK for name, most in WINDOW.items())


def same_order(results: Results) -> tuple[str, bool]:
    """How stale the replies were, in words, and whether real and virtual time agree."""
    told, held = [], True
    for name in PAIRED:
        real, virtual = results.real[name], results.virtual[name]
        staleness = [new - old for _, old, new in virtual]
        told.append(f"{name} {len(virtual)} replies, staleness {', '.join(map(str, staleness))}")
        held &= real == virtual and max(staleness, default=0) > 0
    return "; ".join(told), held


def accuracies(results: Results) -> tuple[str, None]:
    """The mean accuracy over time, and that in the end, in words; nothing is demanded of them."""
    mean = {name: _mean(results.times[name], results.accuracies[name]) for name in METHODS}
    told = (f"{name} {mean[name]:.3f}, in the end {results.accuracies[name][-1]:.3f}" for name in METHODS)
    return "; ".join(told), None


CLAIMS: dict[str, tuple[str, Callable[[Results], tuple[str, bool | None]]]] = {
    "sleeping_idle": (
        f"on Ray, nodes that sleep 0.2 to 2 s get their next order within FedFix's window of {WINDOW['FedFix']:g} s, "
        f"and with FedBuff at once, but for {SLACK:g} s",
        nobody_idle,
    ),
    "sleeping_order": (
        "where arrivals are half a second apart, Ray by the wall clock and a virtual grid by its own take the same "
        "replies to the same versions into the same models",
        same_order,
    ),
    "sleeping_accuracy": (
        f"mean test accuracy over {DURATION:g} s of the wall clock, of one run, with nodes that sleep 0.2 to 2 s",
        accuracies,
    ),
}
"""What is claimed, and how it is judged, by name."""


def draw(results: Results, path: Path) -> None:
    """Test accuracy against the wall clock."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, color in zip(METHODS, BRIGHT, strict=False):
        axis.step(results.times[name], results.accuracies[name], where="post", marker=".", color=color, label=name)
    axis.set_xlabel("seconds of the wall clock", color=INK)
    axis.set_ylabel("test accuracy", color=INK)
    axis.set_xlim(0.0, DURATION)
    axis.legend(frameon=False, loc="lower right")
    plain(axis, grid="y")
    save(figure, path)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/flower_strategies/sleeping"),
    picture: Annotated[Path, typer.Option(help="Where the picture goes.")] = HERE / "sleeping.png",
) -> None:
    """Print a table, draw the picture and check the claims; exit code 1 where one does not hold."""
    results = measure(out.absolute())
    table = Table(title=f"{len(SECONDS)} nodes on Ray that take {min(SECONDS):g} to {max(SECONDS):g} s")
    for column in ("", "models", "accuracy in the end", "longest wait, s", "by the nodes' clocks"):
        table.add_column(column, justify="right" if column else "left")
    for name in METHODS:
        seen, own = results.waits[name]
        models = str(len(results.times[name]))
        table.add_row(name, models, f"{results.accuracies[name][-1]:.3f}", f"{seen:.2f}", f"{own:.2f}")
    shown = console(100)
    shown.print(table)
    draw(results, picture)
    judged = {text: judge(results) for text, judge in CLAIMS.values()}
    for text, (told, held) in judged.items():
        shown.print(f"{VERDICTS[held]}: {text}: {told}")
    if any(held is False for _, held in judged.values()):
        raise typer.Exit(1)


def _text(seconds: Sequence[float]) -> str:
    return " ".join(map(str, seconds))


def _done(out: Path, methods: Sequence[str]) -> bool:
    return all((out / name / WORK).is_file() for name in methods)


def _timeline(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["timeline"]
    return entries


def waited(folder: Path) -> float:
    """The longest time between a node's reply and its next order, as the server saw it."""
    by_node = defaultdict[int, list[Any]](list)
    for entry in _timeline(folder):
        by_node[entry["client"]].append(entry)
    waits: list[float] = [
        later["start"] - former["end"] for each in by_node.values() for former, later in pairwise(each)
    ]
    return max(waits)


def waited_by_nodes(folder: Path) -> float:
    """The same as the nodes themselves saw it, of work whose result was taken."""
    by_node = defaultdict[int, list[tuple[float, float]]](list)
    for entry in json.loads((folder / WORK).read_text(encoding="utf-8")):
        by_node[entry["partition"]].append((entry["began"], entry["ended"]))
    return max(later[0] - former[1] for each in by_node.values() for former, later in pairwise(sorted(each)))


def uses(folder: Path) -> list[Use]:
    """The replies that were taken, in the order of the versions that they moved, and of partitions."""
    steps = dict[int, float]()
    for row in History(folder / METRICS):  # the last may be of the end of the time, and of no step
        steps.setdefault(int(row["round"]) - 1, row["time"] + TINY)
    taken = [entry for entry in _timeline(folder) if entry["used"] is not None]
    found = []
    for entry in taken:  # what is in a buffer that was not full in the end has moved nothing
        moved = next((version for version, time in steps.items() if entry["used"] <= time), None)
        if moved is not None:
            found.append((moved, entry["client"], entry["version"]))
    # Work is written down in the same order; who a client is differs from run to run on Ray, and partitions do not.
    partitions = [entry["partition"] for entry in json.loads((folder / WORK).read_text(encoding="utf-8"))]
    uses = [(who, old, new) for who, (new, _, old) in zip(partitions, sorted(found), strict=True)]
    return sorted(uses, key=lambda use: (use[2], use[0]))


def _mean(times: Sequence[float], accuracies: Sequence[float]) -> float:
    """The mean over the time from 0 to `DURATION`, where before the first model nothing is right."""
    ends = [*times[1:], max(DURATION, times[-1])]
    lasting = [end - begin for begin, end in zip(times, ends, strict=True)]
    return sum(share * accuracy for share, accuracy in zip(lasting, accuracies, strict=True)) / ends[-1]


if __name__ == "__main__":
    typer.run(main)
