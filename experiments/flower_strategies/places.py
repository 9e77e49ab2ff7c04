"""Where the app `experiments/flower_apps/linear` runs: on a virtual grid, on Ray, or on SuperNodes of this machine.

Flower has a folder and ports of its own, which nobody else uses, and no process is left behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedsim.core.errors import FedsimError
from fedsim.flower import AppFolder, simulate

APP = Path(__file__).parents[1] / "flower_apps" / "linear"
WORK = "work.json"
"""What each method's folder has at its end."""
PATIENCE = 20.0
"""Seconds that a process has for its end, before it is killed."""
LIMIT = 1800.0
"""Seconds that a run may take."""


def written(config: Mapping[str, Any]) -> str:
    """A run configuration as text."""
    texts = {name: f'"{value}"' if isinstance(value, str | Path) else str(value) for name, value in config.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())


def virtually(nodes: int, config: Mapping[str, Any], seconds: Mapping[int, float] | None = None) -> None:
    """Run the app on virtual grids, one a method, whose nodes are at work for nobody else.

    seconds: virtual ones, that each node takes.
    """
    for method in config["methods"].split():
        folder = AppFolder.read(APP, (written({**config, "nodes": nodes, "methods": method}),))
        with folder.on_path():
            simulate(folder.server, folder.client, nodes, run_config=folder.run_config, worlds=1, durations=seconds)


def on_ray(nodes: int, config: Mapping[str, Any]) -> None:
    """Run the app by `flwr run` on Ray, with an actor for each node, so that all can sleep at once."""
    with _flower() as (environment, port):
        _configured(environment, "ray", f'address = "127.0.0.1:{port}"\ninsecure = true\n')
        federation = f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus={nodes}"
        superlink = ["flower-superlink", "--insecure", "--simulation", "--port", str(port)]
        with _process(superlink, environment):
            _run("ray", environment, {**config, "nodes": nodes}, ["--federation-config", federation])


def on_super_nodes(nodes: int, config: Mapping[str, Any]) -> None:
    """Run the app by `flwr run` on a SuperLink with SuperNodes, each in a process of its own."""
    with _flower() as (environment, port):
        _configured(environment, "nodes", f'address = "127.0.0.1:{port}"\ninsecure = true\n')
        with _process(["flower-superlink", "--insecure", "--port", str(port)], environment):
            others = [_supernode(node, nodes, port) for node in range(nodes)]
            with _processes(others, environment):
                _run("nodes", environment, {**config, "nodes": nodes}, [])


def _supernode(node: int, nodes: int, port: int) -> list[str]:
    (own,) = free_ports(1)
    command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own)]
    return [*command, "--node-config", f"partition-id={node} num-partitions={nodes}"]


def _run(name: str, environment: Mapping[str, str], config: Mapping[str, Any], further: list[str]) -> None:
    """Start the run, and wait for its end. FedsimError: it has failed."""
    command = ["flwr", "run", str(APP), name, "--stream", "--run-config", written(config), *further]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, timeout=LIMIT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    folders = [Path(config["out"]) / method for method in config["methods"].split()]
    lost = [folder.name for folder in folders if not (folder / WORK).is_file()]
    if done.returncode or lost:
        raise FedsimError(f"flwr run: {', '.join(lost)} did not finish\n{done.stdout[-5000:]}")


def _configured(environment: Mapping[str, str], name: str, text: str) -> None:
    home = Path(environment["FLWR_HOME"])
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{name}"\n\n[superlink.{name}]\n{text}', encoding="utf-8"
    )


@contextmanager
def _flower() -> Iterator[tuple[dict[str, str], int]]:
    """An environment for Flower's processes, and a port."""
    # Ray puts sockets there, whose paths have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="fs"))
    (port,) = free_ports(1)
    apart = environment(folder)
    try:
        yield apart, port
    finally:
        _end_all(apart["FLWR_HOME"])
        shutil.rmtree(folder)


def environment(folder: Path) -> dict[str, str]:
    """An environment in which Flower and Ray keep to a folder, call nobody, and install nothing."""
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    given = {"PATH": programs, "FLWR_HOME": str(folder / "home"), "RAY_TMPDIR": str(folder)}
    off = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    off["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
    return {**os.environ, **given, **off}


@contextmanager
def _process(command: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    """A process, and all that it starts, until the end of this block."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            time.sleep(2.0)  # those who look for it look again
            yield
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _processes(commands: list[list[str]], environment: Mapping[str, str]) -> Iterator[None]:
    if not commands:
        yield
        return
    first, *others = commands
    with _process(first, environment), _processes(others, environment):
        yield


def _end_all(home: str) -> None:
    """Have all processes end that have this FLWR_HOME, whatever became their parent, and wait until they have."""
    for mark in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + PATIENCE
        for number in living(home):
            with suppress(ProcessLookupError):
                os.kill(number, mark)
        while living(home) and time.monotonic() < end:
            time.sleep(0.1)


def living(home: str) -> dict[int, str]:
    """The living processes with this FLWR_HOME: their command lines, by number."""
    found, mark = dict[int, str](), f"FLWR_HOME={home}".encode()
    for place in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if place.name.isdigit() and mark in (place / "environ").read_bytes().split(b"\0"):
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if line:  # else it has ended
                    found[int(place.name)] = line
    return found


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
