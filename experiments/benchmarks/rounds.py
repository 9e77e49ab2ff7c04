"""The benchmark of rounds: `python -m experiments.benchmarks.rounds`, with `--quick` in two minutes.

Every engine has a process of its own. It first runs the rounds after which accuracies are compared, which warm it up;
then the engines take turns, so that a machine that slows down slows all of them. A turn is one round, or as many as fit
into a quarter of a second, and counts with its median. Reported: the median time of a round and its quartiles, the
ratio to fedsim (the median over turns of the ratio within a turn), the seconds until an engine was ready and those of
its first round, in which some compile, the peak memory of its processes, and the test accuracy after the same number
of rounds (of functions, their value). An engine with a (1) behind its name is held to one core, and `--cores one` holds
all of them to it.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

AVERAGING = (
    "digits",
    "digits_32",
    "one_hidden",
    "two_nn",
    "images",
    "lenet",
    "fedavg_cnn",
    "resnet",
    "character_lstm",
    "transformer",
)
ALTERED = ("digits_norm", "adversarial_5", "adversarial_100", "curriculum")
VALUES = "zeroth_order"
WORKS = (*AVERAGING, *ALTERED, VALUES)
OWN = ("fedsim", "plain loop")
"""Engines, by how their names begin, that know running statistics, attacks and curricula; others are left out there."""
QUICK = {"digits": 8, "one_hidden": 6, "two_nn": 4}
"""Works of `--quick` and their turns."""
FEDSIM = "fedsim auto"
TURN = 0.25
"""Seconds that an engine's turn lasts at least: a turn is one round, or as many as fit."""
PATIENCE = 600.0
"""Seconds to wait for one answer of an engine."""


def engines(cores: int, gpu: bool) -> dict[str, Callable[[Any], Any]]:
    """Makers of engines by their names in the table, on one core and on `cores`."""
    from experiments.benchmarks.engine import Fedsim
    from experiments.benchmarks.peers.flower_ray import FlowerRay
    from experiments.benchmarks.peers.jax_hand import JaxHand
    from experiments.benchmarks.peers.pfl_research import PflResearch
    from experiments.benchmarks.peers.plain import LeanLoop, PlainLoop

    made: dict[str, Callable[[Any], Any]] = {
        name: partial(Fedsim, executor=name.removeprefix("fedsim "))
        for name in (FEDSIM, "fedsim fused", "fedsim stacked", "fedsim loop")
    }
    counts = sorted({1, cores})
    for name, engine in (("plain loop", PlainLoop), ("lean loop", LeanLoop)):
        made |= {f"{name} ({count})": partial(engine, threads=count) for count in counts}
    for form in ("vmap", "scan"):
        made |= {f"JAX {form} ({count})": partial(JaxHand, form=form, cores=count) for count in counts}
    made["pfl-research (1)"] = partial(PflResearch, threads=1)
    made[f"Flower Ray ({cores})"] = partial(FlowerRay, cpus=cores)
    if gpu:
        made["fedsim auto GPU"] = partial(Fedsim, executor="auto", device="cuda")
        made["fedsim loop GPU"] = partial(Fedsim, executor="loop", device="cuda")
    return made


def value_engines() -> dict[str, Callable[[Any], Any]]:
    """Makers of engines for zeroth-order work, whose `accuracy` is the value of F."""
    from experiments.benchmarks.engine import FedsimValues
    from experiments.benchmarks.peers.values import PlainValues

    return {FEDSIM: FedsimValues, "plain loop (1)": PlainValues}


def made(work_name: str) -> Any:
    """The work of this name."""
    from experiments.benchmarks.peers import values, works

    return values.zeroth_order() if work_name == VALUES else getattr(works, work_name)()


@dataclass
class Measured:
    """What an engine's process reports: seconds of each turn's round, to start, of the first round; MiB at most."""

    seconds: list[float] = field(default_factory=list)
    start: float = 0.0
    first: float = 0.0
    accuracy: float = 0.0
    memory: float = 0.0


def serve(connection: Connection, name: str, work_name: str, cores: int, gpu: bool) -> None:
    """An engine's process: do what is asked for until asked to stop."""
    if cores == 1 or name.endswith("(1)"):
        hold_to_one_core()
    began = time.perf_counter()
    makers = value_engines() if work_name == VALUES else engines(cores, gpu)
    engine = makers[name](made(work_name))
    if (why := engine.missing()) is not None:
        connection.send(why)
        return
    try:
        engine.start()
        connection.send(time.perf_counter() - began)
        while (order := connection.recv()) != "stop":
            if order == "accuracy":
                connection.send(engine.accuracy())
                continue
            seconds: list[float] = []
            while not seconds or (order == "turn" and sum(seconds) < TURN):
                before = time.perf_counter()
                engine.round()
                seconds.append(time.perf_counter() - before)
            connection.send(statistics.median(seconds))
        connection.send(peak_memory([os.getpid(), *getattr(engine, "processes", list)()]))
    except EOFError:
        print(f"{name}: the benchmark has ended early", file=sys.stderr)
    finally:
        engine.stop()


def hold_to_one_core() -> None:
    """Let this process and all threads and processes that it starts run on the last of the cores that it may use."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def race(work_name: str, names: Sequence[str], turns: int, cores: int, gpu: bool) -> dict[str, Measured | str]:
    """Let engines take turns; for each what was measured, or why it could not run."""
    rounds = made(work_name).rounds
    spawn = get_context("spawn")
    found: dict[str, Measured | str] = {}
    running: dict[str, tuple[Connection, Any]] = {}
    try:
        for name in names:
            here, there = spawn.Pipe()
            # pfl-research sets itself up only in a process of this name.
            process = spawn.Process(target=serve, args=(there, name, work_name, cores, gpu), name="MainProcess")
            process.start()
            there.close()
            running[name] = (here, process)
            ready = _answer(here, name)
            found[name] = ready if isinstance(ready, str) else Measured(start=ready)
        alive = {name: one for name, one in found.items() if isinstance(one, Measured)}
        for name, measured in alive.items():
            measured.first = _ask(running[name][0], "round", name)
            for _ in range(rounds - 1):
                _ask(running[name][0], "round", name)
            measured.accuracy = _ask(running[name][0], "accuracy", name)
        for _ in range(turns):
            for name, measured in alive.items():
                measured.seconds.append(_ask(running[name][0], "turn", name))
        for name, measured in alive.items():
            measured.memory = _ask(running[name][0], "stop", name)
    finally:
        for connection, process in running.values():
            connection.close()
            process.join(60)
            if process.is_alive():
                process.kill()
                process.join()
    return found


def _ask(connection: Connection, order: str, name: str) -> Any:
    connection.send(order)
    return _answer(connection, name)


def _answer(connection: Connection, name: str) -> Any:
    if not connection.poll(PATIENCE):
        raise TimeoutError(f"{name} did not answer within {PATIENCE:.0f} s")
    try:
        return connection.recv()
    except EOFError as error:
        raise RuntimeError(f"{name} has died; its traceback is above") from error


def peak_memory(processes: Sequence[int]) -> float:
    """The sum of the processes' peak resident memory, in MiB."""
    total = 0.0
    for process in processes:
        # Not getrusage, whose maximum a new process has from the one that started it.
        status = Path(f"/proc/{process}/status")
        if status.exists():
            total += sum(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return total


def table_of(title: str, found: dict[str, Measured | str]) -> Table:
    """The rows of one work."""
    table = Table(title=title)
    columns = ("engine", "ms a round", "quartiles", "times fedsim auto", "start s", "first round s", "MiB", "accuracy")
    for column in columns:
        table.add_column(column, justify="left" if column == "engine" else "right")
    base = found[FEDSIM]
    assert isinstance(base, Measured)
    for name, measured in found.items():
        if isinstance(measured, str):
            table.add_row(name, measured)
            continue
        pairs = zip(measured.seconds, base.seconds, strict=True)
        ratio = statistics.median(own / ours for own, ours in pairs)
        quarters = statistics.quantiles(measured.seconds, n=4, method="inclusive")
        table.add_row(
            name,
            f"{1000 * statistics.median(measured.seconds):.1f}",
            " to ".join(f"{1000 * value:.1f}" for value in (quarters[0], quarters[2])),
            f"{ratio:.2f}",
            f"{measured.start:.1f}",
            f"{measured.first:.2f}",
            f"{measured.memory:.0f}",
            f"{measured.accuracy:.4f}",
        )
    return table


@dataclass(frozen=True)
class Cost:
    """Seconds on the wall and of the processor, the system's among them."""

    wall: float
    cpu: float


def watched(command: Sequence[str], rows: Path) -> tuple[Cost, Cost]:
    """What a command takes until the first line is in the file `rows`, and until its end; the same if none ever is."""
    began, first = time.perf_counter(), None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while first is None and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
        if rows.is_file() and rows.stat().st_size:
            first = Cost(time.perf_counter() - began, _cpu_so_far(process.pid))
    _, status, used = os.wait4(process.pid, 0)
    whole = Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return first or whole, whole


def _cpu_so_far(process: int) -> float:
    """Seconds of the processor that a process has taken, in steps of the system's clock (10 ms)."""
    used = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def starts(turns: int) -> Table:
    """The main job from the shell until its first round and until its end, beside PyTorch's import alone, warm."""
    found: dict[str, list[Cost]] = {"import torch": [], "until the first round": [], "until the end": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        ours = ("-m", "fedsim", "run", "experiments/digits_fedavg.toml", "--out", str(out))
        for turn in range(turns + 1):
            torch, _ = watched([sys.executable, "-c", "import torch"], out / "metrics.jsonl")
            first, whole = watched([sys.executable, *ours], out / "metrics.jsonl")
            shutil.rmtree(out)
            if turn:
                for costs, cost in zip(found.values(), (torch, first, whole), strict=True):
                    costs.append(cost)
    table = Table(title="fedsim run experiments/digits_fedavg.toml, warm; ratios within turns")
    for column in ("", "seconds", "times import torch", "CPU seconds", "times import torch"):
        table.add_column(column, justify="right" if column else "left")
    for name, costs in found.items():
        cells = []
        for kind in ("wall", "cpu"):
            own, base = ([getattr(cost, kind) for cost in of] for of in (costs, found["import torch"]))
            ratio = statistics.median(ours / theirs for ours, theirs in zip(own, base, strict=True))
            cells += [f"{statistics.median(own):.2f}", f"{ratio:.2f}"]
        table.add_row(name, *cells)
    return table


class Cores(StrEnum):
    """How many cores engines have."""

    ONE = "one"
    ALL = "all"


def main(
    works: Annotated[str, typer.Option(help=f"{', '.join(WORKS)}, start; several with commas.")] = (
        f"{','.join(WORKS)},start"
    ),
    turns: Annotated[int, typer.Option(min=4, help="Turns of each engine on the digits; a third elsewhere.")] = 25,
    only: Annotated[str, typer.Option(help="Engines to run, with commas; all by default.")] = "",
    cores: Annotated[
        Cores, typer.Option(help="Hold all engines to one core, or only those of one thread.")
    ] = Cores.ALL,
    quick: Annotated[bool, typer.Option(help=f"In two minutes: {', '.join(QUICK)}, the fastest engines.")] = False,
    gpu: Annotated[bool, typer.Option(help="Add rows for fedsim on a CUDA device.")] = False,
) -> None:
    """Print the benchmark table."""
    console = Console(width=120)
    count = 1 if cores is Cores.ONE else len(os.sched_getaffinity(0))
    console.print(f"{processor()}, {count} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for work in QUICK if quick else works.split(","):
        if work in WORKS:
            able = list(value_engines() if work == VALUES else engines(count, gpu))
            if work in ALTERED:
                able = [name for name in able if name.startswith(OWN)]
            if only:
                able = [name for name in able if name in [FEDSIM, *only.split(",")]]
            if quick:
                quickly = (FEDSIM, "lean loop (1)", f"JAX vmap ({count})", f"JAX scan ({count})")
                able = [name for name in able if name in quickly]
            of_each = QUICK[work] if quick else turns if work.startswith("digits") else max(4, turns // 3)
            console.print(table_of(work, race(work, able, of_each, count, gpu)))
        elif work == "start":
            console.print(starts(3))
        else:
            raise typer.BadParameter(f"{work} is none of {', '.join(WORKS)}, start")
    console.print(f"load {os.getloadavg()[0]:.1f} at the end")


def processor() -> str:
    """The processor's name, where /proc tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
