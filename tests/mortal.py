"""A process whose children run an experiment and are killed, again and again; see `test_resume`.

`python mortal.py` reads a task a line, `{"scenario", "folder", "seed", "kills"}`, and writes a line for each. It forks,
so that a child has everything imported and one thread. A child goes on with the run in the folder; the last one
finishes it.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import fedsim
import fedsim.core.files as files
import fedsim.running.folder as runfolder
from fedsim.core.errors import InputError
from fedsim.problems.supervised import Supervised
from fedsim.running import runner
from fedsim.running.checkpoint import Keeper, listed
from fedsim.running.resume import resume
from fedsim.running.runner import run

PACE = 3
"""Checkpoints after which a child that is to be killed by the clock waits for it, so that it does not finish."""
SLOWEST = 0.06
"""Seconds after its first round begins in which it is killed at the latest."""
WINDOW = 0.3
"""Virtual seconds of a round of the scenario that ends by time."""
SMALL: dict[str, Any] = {
    "problem": {
        "dataset": {"kind": "synthetic", "clients": 6, "features": 5, "classes": 3, "examples_per_client": 12},
        "model": {"kind": "mlp", "hidden": [6]},
    },
    "partition": {"kind": "natural"},
    "selection": {"kind": "uniform", "count": 4},
    "client": {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1},
    "evaluation": {"every": 2},
}
NORMED = {"kind": "mlp", "hidden": [6], "norm": "batch"}
OWN = {**SMALL["problem"], "model": NORMED, "normalisation": {"statistics": "local_statistics"}}
"""Where statistics of the batches stay with each client."""
SPREAD = {"compute": {"kind": "fixed", "spread": 80.0}}
SCENARIOS: dict[str, dict[str, Any]] = {
    "fedavg": {"strategy": {"kind": "fedavg", "server_lr": 0.1, "server_optimizer": "adam"}},
    "scaffold": {
        "problem": OWN,
        "strategy": "scaffold",
        "client": {"kind": "scaffold", "epochs": 2, "batch_size": 4, "lr": 0.1},
        "selection": {"kind": "oort", "count": 3},
    },
    "fedbuff": {
        "strategy": {"kind": "fedbuff", "size": 2},
        "devices": SPREAD,
        "evaluation": {"every": 3},
        "faults": {
            "drop_after": 0.05,
            "crash": {"rate": 0.05, "repair_seconds": 0.5},
            "late": {"rate": 0.1, "seconds": 0.4},
            "duplicate": {"rate": 0.2, "seconds": 0.7},
            "non_finite": 0.05,
        },
    },
    "fedfix": {
        "strategy": {"kind": "fedfix", "window": WINDOW, "frequency": "observed"},
        "devices": {
            **SPREAD,
            "jitter": 0.3,
            "failure": {"mean_seconds": 5.0, "repair_seconds": 1.0},
            "availability": {"kind": "markov", "mean_on": 20.0, "mean_off": 5.0, "period": 1.0},
        },
        "rounds": None,
        "evaluation": {"every_seconds": 0.7},
    },
    "fedzo": {
        "problem": {"kind": "benchmark", "dimension": 6, "clients": 5, "noise": 0.01},
        "partition": None,
        "strategy": "fedzo",
        "client": {"kind": "fedzo", "steps": 3, "lr": 0.05, "estimator": {"kind": "differences", "count": 3}},
        "transforms": [{"kind": "clip", "max_norm": 0.1}, {"kind": "noise", "std": 0.01}],
    },
    "one_byte": {"strategy": {"kind": "one_byte", "samples": 2}, "client": {"kind": "one_byte", "mu": 0.1}},
}
if find_spec("numba") is not None:
    SCENARIOS["fused"] = {"engine": {"executor": "fused"}}
POINTS = ("write", "fsync", "replace", "renamed", "unlink", "append", "between")
"""Where a child kills itself: in a checkpoint's own write, before the disk has it, before and after it has its name,
before an old one is removed, within a line of the metrics, and between two rounds."""


ENDINGS = ("trace.json", "model.safetensors", "clients.csv", "curves.png", "summary.json", "tidy")
"""And when all rounds are done: before a file has its name, and before what only an unfinished run needs is removed."""


def experiment(scenario: str, rounds: int) -> fedsim.Experiment:
    """A scenario with a checkpoint every round."""
    tables = {"name": scenario, "rounds": rounds, **SMALL, **SCENARIOS[scenario], "checkpoint": {"every": 1}}
    if tables["rounds"] is None:
        tables["duration"] = WINDOW * rounds
    return fedsim.experiment(**{name: table for name, table in tables.items() if table is not None})


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(occasion: int, event: Callable[..., Any] = die) -> Callable[..., None]:
    """A function that does nothing but at its so-manieth call."""
    calls = iter(range(1, sys.maxsize))

    def called(*given: Any) -> None:
        if next(calls) == occasion:
            event(*given)

    return called


class Torn(io.FileIO):
    """A file of which half of what is written on some occasion arrives, and nothing after."""

    occasion: Callable[..., None]

    def write(self, content: Any) -> int:
        def tear() -> None:
            super(Torn, self).write(bytes(content)[: len(content) // 2])
            die()

        self.occasion(tear)
        return super().write(content)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(bytes(part) for part in parts))


def trap(point: str, occasion: int) -> None:
    """Have this process kill itself when it comes to a point for the so-manieth time."""
    reached, torn = at(occasion), at(occasion, lambda tear: tear())
    replace, unlink = os.replace, Path.unlink

    def is_ours(path: Any) -> bool:
        return Path(path).suffix == ".safetensors" and Path(path).parent.name == "checkpoints"

    def replacing(source: Any, target: Any) -> None:
        ours = is_ours(target) if point in POINTS else Path(target).name == point
        if ours and point != "renamed":
            reached()
        replace(source, target)
        if ours and point == "renamed":
            reached()

    def unlinking(path: Path, **options: Any) -> None:
        if is_ours(path):
            reached()
        unlink(path, **options)

    def opening(path: Any, mode: str, **options: Any) -> Any:
        own = Path(path).name == "metrics.jsonl" if point == "append" else "checkpoints" in Path(path).parts
        if not own:
            return open(path, mode, **options)
        file = Torn(path, mode.replace("b", ""))
        file.occasion = torn
        return file

    if point == "unlink":
        Path.unlink = unlinking  # type: ignore[method-assign]
    elif point == "fsync":
        os.fsync = reached
    elif point in ("write", "append"):
        (runfolder if point == "append" else files).open = opening  # type: ignore[union-attr]
    elif point == "tidy":
        runfolder.RunFolder.tidy = lambda _: reached()  # type: ignore[method-assign]
    elif point == "between":
        Keeper.__call__ = lambda _: reached()  # type: ignore[method-assign]
    else:
        os.replace = replacing


def paced(started: int) -> None:
    """Have this process say to a pipe when its first round begins, and wait to be killed after a few checkpoints."""
    write, wait = Keeper.write, at(PACE, lambda: time.sleep(60))
    call, say = Keeper.__call__, at(1, lambda: os.write(started, b"."))

    def writing(self: Keeper) -> None:
        write(self)
        wait()

    def calling(self: Keeper) -> None:
        say()
        call(self)

    Keeper.write, Keeper.__call__ = writing, calling  # type: ignore[method-assign]


def live(scenario: str, folder: Path, rounds: int) -> None:
    """Begin the run of so many rounds, or go on with it."""
    made = experiment(scenario, rounds)
    if (folder / runfolder.CONFIG).is_file():
        with suppress(InputError) if runfolder.RunFolder(folder).ended() else nullcontext():
            resume(folder)
    else:
        run(made, out=folder, force=True)


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """A child that does this work; it is gone when the block ends."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.fsync = lambda _: None  # that the disk has everything is a matter of power cuts, not of SIGKILL
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    yield pid


def ended(pid: int) -> int:
    """The signal that has ended a child, or 0 where it came to its end. RuntimeError: it has failed."""
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a child has failed; its traceback is above")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def suffer(scenario: str, folder: Path, seed: int, kills: int, endings: bool) -> dict[str, Any]:
    """Run a scenario whole in folder/whole, and in folder/torn with so many deaths; endings: and those of `ENDINGS`.

    Tells what they were, and up to which round there was a checkpoint after each.
    """
    chance = random.Random(seed)
    rounds_in_all = (PACE + 1) * kills  # more than those of all children that are killed before the end
    with child(lambda: live(scenario, folder / "whole", rounds_in_all)) as pid:
        assert ended(pid) == 0
    torn = folder / "torn"
    # Every point at least once, and the others by the clock.
    deaths: list[str | float] = [*POINTS, *(chance.uniform(0, SLOWEST) for _ in range(kills - len(POINTS)))]
    chance.shuffle(deaths)
    rounds: list[int] = []

    begun, started = os.pipe()

    def doomed(death: str | float) -> None:
        try:
            if isinstance(death, str):
                trap(death, chance.randint(1, 3) if death in POINTS else 1)
            else:
                paced(started)
            live(scenario, torn, rounds_in_all)
        finally:
            os.write(started, b".")  # where it fails or finishes, which is said next

    deaths += ENDINGS if endings else ()
    for death in deaths:
        with child(lambda: doomed(death)) as pid:  # noqa: B023
            if isinstance(death, float):
                os.read(begun, 1)
                time.sleep(death)
                os.kill(pid, signal.SIGKILL)
            if ended(pid) != signal.SIGKILL:
                raise RuntimeError(f"the child that was to die by {death} has come to its end")
        rounds.append(max((int(path.name[:8]) for path in listed(torn / "checkpoints")), default=0))
    with child(lambda: live(scenario, torn, rounds_in_all)) as pid:
        assert ended(pid) == 0
    return {"deaths": list(map(str, deaths)), "rounds": rounds}


def quiet(*_: object, **__: object) -> None:
    """Draw nothing: pictures take most of the time, and are no part of this."""


def main(tasks: Sequence[str] | Any = sys.stdin) -> None:
    torch.set_num_threads(1)
    Supervised.illustrate = quiet  # type: ignore[method-assign]
    runner.curves = lambda _, place, asked: files.write_whole(place, b"a picture")  # type: ignore[assignment]
    for line in tasks:
        task = json.loads(line)
        try:
            run(replace(experiment(task["scenario"], 1), rounds=1), save=False)  # what is made once for a process
            told = suffer(task["scenario"], Path(task["folder"]), task["seed"], task["kills"], task["endings"])
        except Exception:
            told = {"error": traceback.format_exc()}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
