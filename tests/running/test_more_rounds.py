"""A run that has finished can have more rounds, and then is the run that had them from the start, to the bit."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fedsim
from fedsim.core.errors import InputError
from fedsim.problems.supervised import Supervised
from fedsim.running import more_rounds as place
from fedsim.running import resume as going_on
from fedsim.running import runner
from fedsim.running.checkpoint import listed
from fedsim.running.folder import RunFolder
from fedsim.running.resume import resume
from fedsim.running.runner import run
from fedsim.running.stored import BEST, CLIENTS, END, MODEL, SUMMARY, open_run
from fedsim.testing.problems import small_experiment as small

pytestmark = pytest.mark.usefixtures("unpainted")

WALL = re.compile(rb'"wall": [^,}]*')
TABLES: dict[str, Any] = {
    "problem": {
        "dataset": {"kind": "synthetic", "clients": 6, "features": 5, "classes": 3, "examples_per_client": 12},
        "model": {"kind": "mlp", "hidden": [6]},
    },
    "partition": {"kind": "natural"},
    "client": {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1},
    "evaluation": {"every": 2},
}
FGSM = {"kind": "fgsm", "epsilon": 0.1, "domain": "none"}
RUNS: dict[str, dict[str, Any]] = {
    "a server's optimizer and a schedule": {
        "strategy": {"kind": "fedavg", "server_lr": 0.1, "server_optimizer": "adam"},
        "client": TABLES["client"] | {"schedule": {"kind": "cosine", "rounds": 5}},
        "selection": {"kind": "oort", "count": 3},
    },
    "control variates": {"strategy": "scaffold", "client": TABLES["client"] | {"kind": "scaffold"}},
    "clients that work on": {
        "strategy": {"kind": "fedbuff", "size": 2},
        "devices": {"compute": {"kind": "fixed", "spread": 80.0}, "jitter": 0.3},
        "faults": {"drop_after": 0.1},
    },
    "functions": {
        "problem": {"kind": "benchmark", "dimension": 6, "clients": 5, "noise": 0.01},
        "partition": None,
        "strategy": "fedzo",
        "client": {"kind": "fedzo", "steps": 2, "lr": 0.05, "estimator": {"kind": "differences", "count": 3}},
        "evaluation": {"every": 2, "keep_best": "value"},
    },
    "the best model": {"evaluation": {"every": 2, "keep_best": "test_accuracy"}},
    "attacks": {"evaluation": {"every": 1, "attacks": [FGSM], "attacks_every": 2}},
    "clients set aside": {
        "partition": {"kind": "natural", "validation_clients": 0.3},
        "evaluation": {"every": 2, "on": "validation", "keep_best": "validation_accuracy"},
    },
}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch) -> None:
    """Pictures take most of the time."""
    monkeypatch.setattr(runner, "curves", lambda *_: None)
    monkeypatch.setattr(Supervised, "illustrate", lambda *_: None)


def made(rounds: int, **tables: Any) -> fedsim.Experiment:
    found = TABLES | tables | {"rounds": rounds}
    return small(**{name: table for name, table in found.items() if table is not None})


def left(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for the time on the wall, which stands in the state of its end, too."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != END}
    return {name: WALL.sub(b"", content) for name, content in files.items()}


@pytest.mark.parametrize("case", RUNS)
def test_more_rounds_are_those_of_a_run_that_had_them_from_the_start(case, tmp_path):
    whole, more = tmp_path / "whole", tmp_path / "more"
    run(made(10, **RUNS[case]), out=whole)
    run(made(4, **RUNS[case]), out=more)
    seen: list[int] = []
    for rounds in (6, 10):  # and once more
        result = resume(more, made(rounds, **RUNS[case]), callbacks=[lambda told: seen.append(told.row["round"])])
        assert (result.status, result.summary["rounds"]) == ("finished", rounds)
    assert left(more) == left(whole)
    assert min(seen) > 4
    assert {path.name for path in more.iterdir()} == {path.name for path in whole.iterdir()}


REFUSED = {
    "a round that was judged as the last": ({"evaluation": {"every": 3}}, r"evaluation.every = 3: .*after round 4"),
    "only the last": ({"evaluation": {"every": 0}}, "evaluation.every = 0"),
    "a grid of time": ({"evaluation": {"every_seconds": 0.5}}, "evaluation.every_seconds = 0.5"),
    "an attack on the last": (
        {"evaluation": {"every": 1, "attacks": [FGSM], "attacks_every": 3}},
        "evaluation.attacks_every = 3",
    ),
    "a duration": ({"duration": 1000.0}, "duration = 1000.0"),
    "no state of the end": ({"checkpoint": {"last": False}}, "its end was not kept"),
    "no checkpoints": ({"checkpoint": {"every": 0}}, "its end was not kept"),
    "a run that was stopped": ({"stopping": {"metric": "test_loss", "target": 100.0}}, "this run has stopped"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_the_same_is_refused_with_the_option(case, tmp_path):
    tables, why = REFUSED[case]
    run(made(4, **tables), out=tmp_path / "run")
    before = left(tmp_path / "run")
    with pytest.raises(InputError, match=why):
        resume(tmp_path / "run", made(8, **tables))
    assert left(tmp_path / "run") == before


def test_another_experiment_or_fewer_rounds_are_no_more_rounds(tmp_path):
    run(made(4), out=tmp_path / "run")
    before = left(tmp_path / "run")
    for wanted, why in (
        (made(4), "this run has finished"),
        (made(3), "rounds = 3"),
        (made(8, client=TABLES["client"] | {"lr": 0.2}), "client.lr = 0.2"),
    ):
        with pytest.raises(InputError, match=why):
            resume(tmp_path / "run", wanted)
    assert left(tmp_path / "run") == before


@pytest.mark.parametrize("at", [10, 100, -1, None])
def test_a_state_that_was_changed_is_not_gone_on_from(at, tmp_path):
    run(made(4), out=tmp_path / "run")
    content = bytearray((tmp_path / "run" / END).read_bytes())
    if at is None:
        content = content[: len(content) // 2]
    else:
        content[at] ^= 1
    (tmp_path / "run" / END).write_bytes(content)
    with pytest.raises(InputError, match=r"(is damaged|cannot be read|has no checksum).*begin it anew"):
        resume(tmp_path / "run", made(8))
    assert open_run(tmp_path / "run").ended() == "finished"


class Killed(BaseException):
    """As SIGKILL: nothing is done after it but to close files."""


@pytest.mark.parametrize("step", ["write", "write_config", "remove", "rewind", "drive"])
def test_who_is_killed_while_more_rounds_begin_leaves_one_run_or_the_other(step, tmp_path, monkeypatch):
    whole, more = tmp_path / "whole", tmp_path / "more"
    run(made(8), out=whole)
    run(made(4), out=more)

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        where: Any = {"write": place, "drive": going_on}.get(step, RunFolder)
        patch.setattr(where, step, kill)
        with pytest.raises(Killed):
            resume(more, made(8))
    ended = open_run(more).ended()
    assert ended == ("finished" if step in ("write", "write_config") else None)
    resume(more, made(8) if ended else None)
    assert left(more) == left(whole)
    assert not listed(more / "checkpoints")


def test_more_rounds_from_the_command_line(tmp_path, monkeypatch, capsys):
    import sys

    from fedsim.cli.main import main

    whole, more, tables = tmp_path / "whole", tmp_path / "more", RUNS["the best model"]
    result = run(made(6, **tables), out=whole)
    run(made(4, **tables), out=more)
    best = f"test accuracy {result.summary['best_test_accuracy']:.4f}, after round "
    best += str(result.summary["best_test_accuracy_round"])
    for said in (f"run folder: {more}", "this run has finished"):
        monkeypatch.setattr(sys, "argv", ["fedsim", "run", "--resume", str(more), "--set", "rounds=6"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert said in told
        assert ("finished: 6 rounds" in told) == (f"best model: {best}\n" in told) == ("nothing" not in told)
    assert left(more) == left(whole)


# The best model.


def test_the_best_model_is_kept_and_survives_an_interruption(tmp_path):
    """With a rate that is too large the accuracy rises and falls."""
    tables = {
        "evaluation": {"every": 1, "keep_best": "test_accuracy"},
        "client": TABLES["client"] | {"lr": 1.5},
        "checkpoint": {"every": 1},
    }
    models: dict[int, torch.Tensor] = {}
    keep = [lambda told: models.update({told.row["round"]: told.params})]
    result = run(made(12, **tables), out=tmp_path / "run", callbacks=keep)
    best = result.summary["best_test_accuracy_round"]
    assert best < 12
    assert result.summary["test_accuracy"] < result.summary["best_test_accuracy"]
    kept = load_file(tmp_path / "run" / BEST)
    wanted = result.problem.tensors(models[best])
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    assert not all(torch.equal(kept[name], value) for name, value in load_file(tmp_path / "run" / MODEL).items())

    def interrupt(told: fedsim.Round) -> None:
        if told.row["round"] in (best, best + 1):
            raise KeyboardInterrupt

    torn = tmp_path / "torn"
    assert run(made(12, **tables), out=torn, callbacks=[interrupt]).status == "interrupted"
    assert resume(torn, callbacks=[interrupt]).status == "interrupted"
    resume(torn)
    assert left(torn) == left(tmp_path / "run")


def test_a_measure_that_nobody_takes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"evaluation.keep_best = test_acuracy: .*test_accuracy"):
        run(made(2, evaluation={"keep_best": "test_acuracy"}), out=tmp_path / "run")
    with pytest.raises(InputError, match=r"evaluation.keep_best = test_accuracy: with save=False"):
        run(made(2, evaluation={"keep_best": "test_accuracy"}), save=False)
    assert not (tmp_path / "run").exists()


# The clients.


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / CLIENTS).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_client_has_a_line_of_what_the_last_model_comes_to(tmp_path):
    result = run(made(4), out=tmp_path / "run")
    lines = table(tmp_path / "run")
    assert [line["client"] for line in lines] == [str(number) for number in range(6)]
    accuracies = torch.tensor([float(line["accuracy"]) for line in lines], dtype=torch.float64)
    assert float(accuracies.mean()) == pytest.approx(result.summary["client_accuracy_mean"], rel=1e-12)
    assert float(accuracies.min()) == result.summary["client_accuracy_worst"]
    sizes = [int(line["examples"]) for line in lines]
    weighted = sum(size * float(line["loss"]) for size, line in zip(sizes, lines, strict=True)) / sum(sizes)
    problem = result.problem
    assert isinstance(problem, Supervised)
    own, count = problem.judged.own()
    assert count.tolist() == sizes
    assert weighted == pytest.approx(problem.judged.scores("own", problem.outputs(result.params, own), own)["own_loss"])


def test_functions_have_values_and_owners_have_names(tmp_path):
    result = run(made(2, **RUNS["functions"] | {"evaluation": {"every": 1}}), out=tmp_path / "functions")
    values = [float(line["value"]) for line in table(tmp_path / "functions")]
    assert max(values) == result.summary["client_value_worst"]
    owners = ("St. Mary, old", "b")
    lines = [f'"{owner}",{number % 5},{number % 2}' for number in range(40) for owner in owners]
    text = "\n".join(["owner,x,y", *lines])
    (tmp_path / "data.csv").write_text(text)
    dataset = {"kind": "csv", "path": str(tmp_path / "data.csv"), "label": "y", "owner": "owner"}
    problem, everybody = {"dataset": dataset, "model": "logistic"}, {"kind": "uniform", "fraction": 1.0}
    run(made(2, problem=problem, selection=everybody), out=tmp_path / "owners")
    found = [(line["client"], line["name"]) for line in table(tmp_path / "owners")]
    assert found == [("0", "St. Mary, old"), ("1", "b")]


def test_clients_that_are_not_evaluated_have_no_table(tmp_path):
    run(made(2, evaluation={"clients": False}), out=tmp_path / "run")
    assert not (tmp_path / "run" / CLIENTS).exists()


def test_clients_that_cannot_be_asked_once_more_are_said_and_cost_nothing_else(tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Supervised, "client_measures", fail)
    assert run(made(2), out=tmp_path / "run").status == "finished"
    assert capsys.readouterr().err == "fedsim: warning: clients.csv is missing: ZeroDivisionError: on purpose\n"
    assert (tmp_path / "run" / SUMMARY).is_file()
