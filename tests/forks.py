"""Processes of Python that have the libraries already: forked from one that has imported them, once for many tests.

A new interpreter takes seconds to import PyTorch, a fork takes none. It has arguments, an environment, a current
folder, a path, streams, an exit code and an end of its own, as any other. Tests of imports, of how many threads there
are, and of what an interpreter does when it begins start new ones.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import IO, Any

LIBRARIES = [
    "fedsim",  # first: it fixes the kernels that bitwise comparisons rely on
    "fedsim.cli.main",
    "fedsim.plots",
    "fedsim.running.runner",
    "flwr.app",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pytest",
    "sklearn.datasets",
]


@cache
def _server() -> ForkServerContext:
    """Of `multiprocessing`: whose processes begin with `LIBRARIES`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def sketch(_: object, place: IO[bytes], **__: object) -> None:
    """Save a figure without painting it."""
    place.write(b"a picture")


class Forking:
    """What stands for the context "spawn" of `multiprocessing` where workers are to start at once, without pictures."""

    Pipe = staticmethod(multiprocessing.Pipe)

    def Process(  # noqa: N802
        self, *, target: Callable[..., object], args: tuple[Any, ...], name: str | None = None
    ) -> ForkServerProcess:
        """A process as that context's would be, with the environment that there is now."""
        return _server().Process(target=_within, args=(dict(os.environ), _work, target, *args), name=name)


FORKING = Forking()


def _work(target: Callable[..., object], *arguments: object) -> None:
    from matplotlib.figure import Figure

    Figure.savefig = sketch  # type: ignore[method-assign, assignment]
    target(*arguments)


def unsynced(descriptor: int) -> None:
    """Stand for `os.fsync`, which waits for the disk: what it does not have is only lost where the power fails."""
    os.fstat(descriptor)  # OSError: it is none


def _within(environment: dict[str, str], target: Callable[..., object], *arguments: object) -> None:
    os.fsync = unsynced  # type: ignore[assignment]
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


@cache
def _path() -> list[str]:
    """Where an interpreter looks for modules that is told nothing."""
    code = "import sys; print(*sys.path, sep='\\n')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@contextmanager
def started(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[tuple[ForkServerProcess, Path, Path]]:
    """A process and the files that have its standard output and errors; when the block ends it is killed.

    arguments: Python's: `-P`, and `-m` with a module, `-c` with code, or a script.
    """
    with tempfile.TemporaryDirectory() as folder:
        said, errors = Path(folder, "said"), Path(folder, "errors")
        environment = dict(os.environ if env is None else env)
        given = (list(map(str, arguments)), str(cwd or Path.cwd()), _path())
        process = _server().Process(target=_within, args=(environment, _begin, *given, said, errors))
        process.start()
        try:
            yield process, said, errors
        finally:
            process.kill()
            process.join()


def python(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Start a process as `started` does, and wait for its end. TimeoutError: it takes longer."""
    with started(*arguments, cwd=cwd, env=env) as (process, said, errors):
        process.join(timeout)
        if process.exitcode is None:
            raise TimeoutError(f"{arguments} takes longer than {timeout} s\n{said.read_text()}\n{errors.read_text()}")
        return subprocess.CompletedProcess(arguments, process.exitcode, said.read_text(), errors.read_text())


def _begin(arguments: list[str], cwd: str, path: list[str], said: Path, errors: Path) -> None:
    """Do in this process what Python does with these arguments."""
    for stream, file in ((1, said), (2, errors)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, stream)
        os.close(opened)
    os.chdir(cwd)
    # A shell's job in the background ignores it, and the server may have begun where workers' starts hold it back.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    safe = bool(os.environ.get("PYTHONSAFEPATH"))
    if arguments[0] == "-P":
        safe, arguments = True, arguments[1:]
    if arguments[0] in ("-m", "-c"):
        (how, what, *rest), first = arguments, cwd if arguments[0] == "-m" else ""
        sys.argv = [how, *rest]
    else:
        (what, *rest), how, first = arguments, "", str(Path(arguments[0]).absolute().parent)
        sys.argv = [what, *rest]
    added = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = [*([] if safe else [first]), *added, *path]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif how == "-c":
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(what, "<string>", "exec"), main.__dict__)
    else:
        runpy.run_path(str(Path(what).absolute()), run_name="__main__")
