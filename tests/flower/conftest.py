"""Flower and Ray in a world of their own: a folder and ports that nobody else uses, and no process left behind."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

from experiments.flower_strategies.places import environment, free_ports, living


@pytest.fixture
def local_flower(monkeypatch):
    """Flower's runtimes name the task before they call an app; messages cannot be made without. And nothing pauses."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr("fedsim.flower.nodes.PAUSES", (0.001, 0.001))


class World:
    """Processes that run with a FLWR_HOME of their own; by that they are found again, whatever became their parent."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        http, control = free_ports(2)
        self.environment = {
            **environment(folder),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
            "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        }

    def run(self, command, folder, timeout):
        """Run to the end and return what was printed; an error shows it."""
        done = subprocess.run(
            command, cwd=folder, env=self.environment, stdin=subprocess.DEVNULL, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def processes(self):
        """Living processes of this world: command lines by id."""
        return living(str(self.home))

    def left(self, seconds):
        """The processes that are still there after so long."""
        end = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        return found


@pytest.fixture
def world():
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are found in /proc")
    # Not tmp_path: Ray puts sockets there, whose paths have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="fs"))
    made = World(folder)
    yield made
    for process in made.processes():
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    made.left(10.0)
    shutil.rmtree(folder)
