"""Flower's simulation on Ray, one CPU a client, driven round by round.

A simulation is one call in a process of its own. Its strategy halts before each round until the pipe says to
go on, so that the actors stay warm while other engines have their turn, and a round lasts from the order to
the server's having averaged. Needs Linux: the processes are found by their session in /proc.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from experiments.benchmarks.peers.work import Work

ROOT = Path(__file__).parents[3]
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


class FlowerRay:
    """The peer. cpus: as many actors of one thread each; timeout: seconds for the start and for a round.

    `start` lasts until every actor has answered a query and so has its model and data. app: the module whose `serve`
    the process calls.
    """

    app: ClassVar[str] = "experiments.benchmarks.peers.flower_ray_app"

    def __init__(self, work: Work, cpus: int, timeout: float = 300.0) -> None:
        self.work, self.cpus, self.timeout = work, cpus, timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: Connection[Any, Any] | None = None
        self.folder: Path | None = None

    def missing(self) -> str | None:
        """Say whether Flower or Ray is absent."""
        return None if all(map(importlib.util.find_spec, ("flwr", "ray"))) else "not installed"

    def start(self) -> None:
        """Store the work, start the process and wait for its actors."""
        self.folder = Path(tempfile.mkdtemp(prefix="flower-"))
        stored = self.folder / "work.pt"
        torch.save(self.work, stored)
        self.pipe, theirs = Pipe()
        environment = {**os.environ, **QUIET, "FLWR_HOME": str(self.folder / "flwr")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        child = f"import sys; from {self.app} import serve; serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"
        with (self.folder / "log").open("wb") as log, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", child, str(theirs.fileno()), str(stored), str(self.cpus)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
        self._hear()

    def round(self) -> None:
        """Let the strategy run one round."""
        self._say("round")
        self._hear()

    def parameters(self) -> dict[str, Tensor]:
        """Copy the global model's state dict."""
        self._say("parameters")
        return {name: torch.tensor(array) for name, array in self._hear().items()}

    def accuracy(self) -> float:
        """Measure the test accuracy of the global model."""
        return self.work.accuracy(self.parameters())

    def processes(self) -> list[int]:
        """List the living processes of this simulation by id: the app, Ray's servers and the actors."""
        return [] if self.process is None else session_processes(self.process.pid)

    def stop(self) -> None:
        """End the simulation, give its processes 30 s, kill what is left of them, and remove its folder."""
        if self.pipe is not None:
            # Closing says "stop", and says it also to a process that has ended.
            self.pipe.close()
            self.pipe = None
        if self.process is not None:
            _wait_until_gone(self.process, 30.0)
            for signal_ in (signal.SIGTERM, signal.SIGKILL):
                for process in self.processes():
                    _send(process, signal_)
                _wait_until_gone(self.process, 10.0)
            left = self.processes()
            if left:
                raise RuntimeError(f"the processes {left} of Flower's simulation cannot be ended")
            self.process = None
        if self.folder is not None:
            shutil.rmtree(self.folder)
            self.folder = None

    def _say(self, order: str) -> None:
        if self.pipe is None:
            raise RuntimeError("Flower's simulation is not running; call start")
        self.pipe.send(order)

    def _hear(self) -> Any:
        """Take the next message of the process; when it ends or keeps silent instead, stop everything."""
        assert self.pipe is not None
        assert self.folder is not None
        try:
            if self.pipe.poll(self.timeout):
                return self.pipe.recv()
            cause = f"did not answer within {self.timeout:g} s"
        except EOFError:
            cause = "ended"
        log = (self.folder / "log").read_text(errors="replace")[-2000:]
        self.stop()
        raise RuntimeError(f"Flower's simulation {cause}; the end of its log:\n{log}")


def session_processes(session: int) -> list[int]:
    """List the living processes of a session by id, whoever their parents are by now."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The fields after the parenthesised name: state, parent, group, session.
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state not in "ZX":
            found.append(int(folder.name))
    return sorted(found)


def _wait_until_gone(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until the session that `process` leads is empty, at most so long."""
    end = time.monotonic() + seconds
    while (process.poll() is None or session_processes(process.pid)) and time.monotonic() < end:
        time.sleep(0.05)


def _send(process: int, signal_: signal.Signals) -> None:
    try:
        os.kill(process, signal_)
    except ProcessLookupError:
        return
