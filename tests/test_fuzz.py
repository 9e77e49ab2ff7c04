"""Thousands of mutated experiment files: each either runs or ends with one line and exit code 2.

Mutations are drawn from the files' own parts, so that many of them still mean something: a value becomes another of the
same or another kind, an option goes, a foreign one comes, a table moves, a letter of the text changes. A run that
would take long is interrupted as if at the keyboard, which has to leave a usable folder, too.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from contract import ROWS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.cli.main import main
from fedsim.cli.words import STATUS
from fedsim.core.plugins import GROUPS, names
from fedsim.engine.executor import Executor
from fedsim.running.stored import CONFIG, METRICS, SUMMARY, TRACEBACK

LONGEST = 3_000
"""Local steps and evaluations after which a run is interrupted."""
SMALL: dict[str, Any] = {
    "rounds": 2,
    "problem": {
        "dataset": {"kind": "synthetic", "clients": 4, "examples_per_client": 10, "features": 3, "classes": 3},
        "model": "logistic",
    },
    "partition": {"kind": "natural"},
    "client": {"kind": "sgd", "epochs": 1, "batch_size": 8, "lr": 0.1},
}
VALUES_ONLY: dict[str, Any] = {
    "rounds": 2,
    "problem": {"kind": "benchmark", "function": "quadratic", "dimension": 3, "clients": 4},
}
FUZZED = ("fedavg", "fedadam", "scaffold", "feddyn", "fednova", "adam", "noise", "deadline", "fedfix", "fedbuff_window")
FUZZED += ("fedasync", "fedzo", "segmented", "fzoos", "one_byte", "fedkseed", "decomfl", "scaffold_zo", "sfat", "cbo")
BASES: list[dict[str, Any]] = [SMALL, *({**SMALL, **ROWS[row], "rounds": 2} for row in FUZZED if row in ROWS)]
BASES += [VALUES_ONLY | {name: ROWS[row][name] for name in ("strategy", "client")} for row in ("fedzo", "fzoos")]
BASES += [
    SMALL | {"evaluation": {"every": 1, "attacks": [{"kind": "pgd", "epsilon": 0.1, "domain": "none"}]}},
    SMALL | {"selection": {"kind": "power_of_choice", "count": 2, "pool": 3}, "stopping": {"patience": 1}},
    SMALL
    | {"devices": {"compute": {"kind": "lognormal", "median": 1.0, "sigma": 0.5}, "failure": {"mean_seconds": 2.0}}},
]
if find_spec("numba") is not None:
    BASES.append(SMALL | {"engine": {"executor": "fused"}})
NUMBERS = [0, 1, -1, 2, 3, 7, 0.0, -0.0, 0.5, 1.5, 1e-300, 1e300, -1e9, 2**31, 2**63, -(2**63), 10**30]
WORDS = [float("nan"), float("inf"), True, False, "", "x", "none", "auto", "mean", "../x", "a:b", "ä\n", "0.1"]
SCALARS = st.sampled_from([*NUMBERS, *WORDS])
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.sampled_from(["kind", "x"]), SCALARS))
KINDS = st.sampled_from(sorted({name for group in GROUPS for name in names(group)}))


class EnoughError(KeyboardInterrupt):
    """The run has shown that it works."""


def places(table: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in nested tables and lists."""
    inner = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    return [found for key, value in inner for found in ((*path, key), *places(value, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    tables = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        everywhere = places(tables)
        if not everywhere:
            break
        *above, last = draw(st.sampled_from(everywhere))
        table: Any = tables
        for key in above:
            table = table[key]
        what = draw(st.sampled_from(["number", "number", "number", "value", "remove", "kind", "foreign", "add"]))
        if what == "value":
            table[last] = draw(VALUES)
        elif what == "number":
            if isinstance(table[last], int | float):
                table[last] = type(table[last])(draw(st.sampled_from([2, 3, 0.5, 10, 0, -1])) * table[last])
            elif isinstance(table[last], str):
                table[last] = draw(KINDS)
        elif what == "kind":
            table[last] = draw(KINDS)
        elif what == "remove":
            del table[last]
        elif isinstance(table, dict):
            donor: Any = copy.deepcopy(draw(st.sampled_from(BASES)))
            *above, name = draw(st.sampled_from(places(donor)))
            for key in above:
                donor = donor[key]
            table[name if what == "foreign" and isinstance(name, str) else "surprise"] = donor[name]
    text = tomli_w.dumps(tables)
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(alphabet='[]{}="\n,.#x1é\0', max_size=2)) + text[at + 1 :]
    return text


def check(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> int:
    """Run a file as the command line does: the exit code, after what may be expected of it has been seen."""
    file, out = folder / "experiment.toml", folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    monkeypatch.setattr(sys, "argv", ["fedsim", "run", str(file), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip()
    code = ended.value.code
    if code == 2:
        assert said.startswith("fedsim: "), said
        assert len(said.splitlines()) == 1, said
        assert not out.exists(), "a folder was left"
    elif code == 130 and not out.exists():  # interrupted before the first round
        pass
    else:
        assert (out / SUMMARY).is_file(), said
        status = json.loads((out / SUMMARY).read_text())["status"]
        assert code == STATUS[status], said
        assert (out / CONFIG).is_file()
        assert not (out / TRACEBACK).exists()
        assert status in ("diverged", "interrupted", "stalled") or (out / METRICS).is_file()
    return int(code)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, unpainted: None) -> None:
    """Runs paint nothing, and are interrupted when they have taken so many local steps that they would take long."""
    assign, taken = Executor.assign, [0]

    def counted(self: Executor, orders: Any) -> Any:
        job = assign(self, orders)
        taken[0] += int(job.cost.steps.sum()) + job.cost.queries * len(job)
        if taken[0] > LONGEST:
            taken[0] = 0
            raise EnoughError
        return job

    monkeypatch.setattr(Executor, "assign", counted)


def fuzz(count: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(text=mutated())
    def each(text: str) -> None:
        codes.append(check(text, folder, monkeypatch, capsys))

    each()
    # Were all refused, or none, nothing would have been tried.
    assert 0.1 < sum(code == 2 for code in codes) / len(codes) < 0.95


@pytest.mark.usefixtures("hurried")
def test_a_mutated_file_runs_or_ends_with_one_line(tmp_path, monkeypatch, capsys):
    fuzz(75, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("hurried")
def test_thousands_of_mutated_files_run_or_end_with_one_line(tmp_path, monkeypatch, capsys):
    fuzz(5_000, tmp_path, monkeypatch, capsys)


@pytest.mark.usefixtures("hurried")
def test_the_files_that_are_mutated_run(tmp_path, monkeypatch, capsys):
    for tables in BASES:
        assert check(tomli_w.dumps(tables), tmp_path, monkeypatch, capsys) == 0
