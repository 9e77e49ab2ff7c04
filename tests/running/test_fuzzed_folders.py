"""Files of run folders whose bytes were changed: each is gone on with, compared or started from, or refused in a line.

No traceback, no crash, no more than 2 GiB and 5 s each. Checkpoints are changed beneath their checksum, too, as who
means ill can do: what a round then finds is an error with a traceback, but nothing is executed, and nothing crashes.
"""

from __future__ import annotations

import hashlib
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.cli.main import main
from fedsim.problems.supervised import Supervised
from fedsim.running import checkpoint, runner
from fedsim.running.checkpoint import NO_SEAL, SEAL, listed
from fedsim.running.runner import run
from fedsim.running.stored import CONFIG, END, METRICS, MODEL, SUMMARY, TRACE
from fedsim.testing.problems import small_experiment as small

pytestmark = pytest.mark.usefixtures("unpainted")

TABLES: dict[str, Any] = {
    "problem": {
        "dataset": {"kind": "synthetic", "clients": 5, "features": 3, "classes": 2, "examples_per_client": 6},
        "model": "logistic",
    },
    "partition": {"kind": "natural"},
    "strategy": {"kind": "fedbuff", "size": 2},
    "devices": {"compute": {"kind": "fixed", "spread": 4.0}},
    "client": {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1},
    "rounds": 6,
    "evaluation": {"every": 1},
    "checkpoint": {"every": 1, "keep": 1},
}
NUMBERS = [b"0", b"-1", b"1e999", b"9" * 30, b"9" * 400, b"9" * 5000]
NUMBERS += [b"null", b"[]", b"{}", b'"x"', b"NaN", b"true", b"1.5"]
SECONDS = 5.0
BYTES = 2**30


class EnoughError(KeyboardInterrupt):
    """The run has shown that it works."""


def changed(content: bytes, chance: random.Random) -> bytes:
    """A few changes: bytes, pieces and numbers that are others, twice there, or gone."""
    found = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(found) + 1)
        size = chance.choice([1, 1, 2, 8, 64])
        kind = chance.randrange(7)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del found[at : at + size]
        elif kind == 2:
            found[at:at] = chance.randbytes(size)
        elif kind == 3:
            found[at:at] = found[chance.randrange(len(found) + 1) :][: 8 * size]
        elif kind == 4:
            found[at:at] = chance.choice([b"[", b"{a=", b'{"a":', b"\n"]) * chance.choice([1, 2, 40, 5000])
        elif kind == 5:
            numbers = list(re.finditer(rb"-?\d+(\.\d+)?", found))
            if numbers:
                number = chance.choice(numbers)
                found[number.start() : number.end()] = chance.choice(NUMBERS)
        elif chance.random() < 0.2:
            del found[at:]
    return bytes(found)


def beneath(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file that is changed in its header or its numbers, and whose lengths fit."""
    size = int.from_bytes(content[:8], "little")
    head, rest = content[8 : 8 + size], content[8 + size :]
    if chance.random() < 0.2:
        rest = changed(rest, chance)
    else:
        head = changed(head, chance)
    return len(head).to_bytes(8, "little") + head + rest


def a_file(name: str) -> Callable[[Path, random.Random], None]:
    def change(folder: Path, chance: random.Random) -> None:
        (folder / name).write_bytes(changed((folder / name).read_bytes(), chance))

    return change


def a_checkpoint(folder: Path, chance: random.Random) -> None:
    (path,) = listed(folder / "checkpoints")
    path.write_bytes(changed(path.read_bytes(), chance))


def a_sound_checkpoint(folder: Path, chance: random.Random) -> None:
    """With the checksum of what it is now."""
    (path,) = listed(folder / "checkpoints")
    content = beneath(path.read_bytes(), chance)
    checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
    path.unlink()
    (path.parent / f"{path.name[:8]}-{checksum}.safetensors").write_bytes(content)


def a_sound_end(folder: Path, chance: random.Random) -> None:
    """The same of the state of the end."""
    seal = re.compile(rf'"{SEAL}":"[0-9a-f]{{32}}"'.encode())
    content = beneath(seal.sub(f'"{SEAL}":"{NO_SEAL}"'.encode(), (folder / END).read_bytes()), chance)
    checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
    (folder / END).write_bytes(content.replace(NO_SEAL.encode(), checksum.encode(), 1))


RESUME, MORE = ("run", "--resume", "run"), ("run", "--resume", "run", "--set", "rounds=8")
COMPARE = ("compare", "run", "--out", "a.png", "--force")
START = ("run", "start.toml", "--out", "other", "--force")
FUZZED: dict[str, tuple[str, Callable[[Path, random.Random], None], tuple[str, ...]]] = {
    "config": ("torn", a_file(CONFIG), RESUME),
    "metrics": ("torn", a_file(METRICS), RESUME),
    "checkpoint": ("torn", a_checkpoint, RESUME),
    "checkpoint beneath its checksum": ("torn", a_sound_checkpoint, RESUME),
    "end": ("whole", a_file(END), MORE),
    "end beneath its checksum": ("whole", a_sound_end, MORE),
    "summary": ("whole", a_file(SUMMARY), MORE),
    "compared metrics": ("whole", a_file(METRICS), COMPARE),
    "compared trace": ("whole", a_file(TRACE), COMPARE),
    "compared config": ("whole", a_file(CONFIG), COMPARE),
    "model": ("whole", a_file(MODEL), START),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was interrupted, one that has ended, and an experiment that starts from a model."""
    folder = tmp_path_factory.mktemp("runs")

    def interrupt(told: fedsim.Round) -> None:
        if told.row["round"] == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        quiet(patch)
        run(small(**TABLES), out=folder / "torn", callbacks=[interrupt])
        run(small(**TABLES), out=folder / "whole")
    text = 'rounds = 1\n[problem]\nmodel = "logistic"\nstart = "run/model.safetensors"\n[partition]\nkind = "natural"\n'
    dataset = 'dataset = {kind = "synthetic", clients = 5, features = 3, classes = 2, examples_per_client = 6}\n'
    (folder / "start.toml").write_text(text.replace("[partition]", f"{dataset}[partition]"))
    return folder


def quiet(patch: pytest.MonkeyPatch) -> None:
    """Without pictures, and with an end to long runs."""
    patch.setattr(runner, "curves", lambda *_: None)
    patch.setattr(Supervised, "illustrate", lambda *_: None)
    call = checkpoint.Keeper.__call__

    def hurried(self: checkpoint.Keeper) -> None:
        if self._run.round > 20:
            raise EnoughError
        call(self)

    patch.setattr(checkpoint.Keeper, "__call__", hurried)


def fuzz(case: str, count: int, runs: Path, folder: Path, patch: pytest.MonkeyPatch, capsys: Any) -> None:
    kept, change, command = FUZZED[case]
    quiet(patch)
    patch.chdir(folder)
    patch.setattr("fedsim.reports.pictures.compare_curves", drawn_sometimes(count, "compare_curves"))
    patch.setattr("fedsim.reports.pictures.histograms", drawn_sometimes(count, "histograms"))
    patch.setattr("fedsim.reports.pictures.timelines", drawn_sometimes(count, "timelines"))
    shutil.copy(runs / "start.toml", "start.toml")
    codes: dict[int, int] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of all tests of this process so far
    for seed in range(count):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(runs / kept, "run")
        change(Path("run"), random.Random(f"{case} {seed}"))
        patch.setattr(sys, "argv", ["fedsim", *command])
        began = time.perf_counter()
        with pytest.raises(SystemExit) as ended:
            main()
        took, said = time.perf_counter() - began, capsys.readouterr().err
        code = int(ended.value.code or 0)
        codes[code] = codes.get(code, 0) + 1
        assert "Traceback" not in said or "beneath" in case, (seed, said)
        assert code in (0, 1, 2, 130), (seed, said)
        assert code != 2 or re.fullmatch(r"(fedsim: warning: [^\n]+\n)*fedsim: [^\n]+\n", said), (seed, said)
        assert took < SECONDS, (seed, took)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert codes.get(2, 0) > count / 10  # most changes are noticed
    assert codes.keys() != {2} or case in ("checkpoint", "end")  # and some are none


def drawn_sometimes(count: int, name: str) -> Callable[..., bool]:
    """Pictures take most of the time: of so many comparisons forty are drawn."""
    from fedsim import plots

    draw, calls = getattr(plots, name), iter(range(10**9))
    return lambda *given: draw(*given) if next(calls) % max(count // 40, 1) == 0 else False


@pytest.mark.parametrize("case", FUZZED)
def test_a_changed_file_is_used_or_refused_in_a_line(case, runs, tmp_path, monkeypatch, capsys):
    fuzz(case, 8 if "compared" in case else 12, runs, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", FUZZED)
def test_thousands_of_changed_files_are_used_or_refused_in_a_line(case, runs, tmp_path, monkeypatch, capsys):
    fuzz(case, 2_000, runs, tmp_path, monkeypatch, capsys)
