"""The comparison against bytes: its files, its measures on curves that are known, its claims, and a short run."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console

import experiments.one_byte.__main__ as program
import fedsim
from experiments import studies
from experiments.one_byte import study
from fedsim.running.runner import run
from fedsim.running.sweep import Outcome

TINY = ("rounds=2", "evaluation.every=1", "problem.model={kind = 'mlp', hidden = [4]}")


def measured(*accuracy, sent=100, queries=200, points=()):
    """Curves [S, T] of runs that are judged after every round."""
    curves = np.array(accuracy, dtype=float)
    each = np.full(curves.shape, float(sent))
    return study.Measured(curves, each.cumsum(axis=1) / 10, each, np.full(curves.shape, float(queries)), points)


def test_files_differ_in_the_method_alone():
    files = {name: tomllib.loads((study.HERE / f"{name}.toml").read_text()) for name in set(study.FILES.values())}
    for tables in files.values():
        del tables["name"], tables["strategy"], tables["client"], tables["rounds"], tables["evaluation"]["every"]
    assert all(tables == files["fedavg"] for tables in files.values())
    assert {path.stem for path in study.HERE.glob("*.toml")} == set(files)


@pytest.mark.parametrize("part", study.PARTS)
@pytest.mark.parametrize("method", study.METHODS)
def test_every_run_can_be_made(part, method):
    chosen = study.PARTS[part]
    made = fedsim.load(study.HERE / f"{study.FILES[method]}.toml", overrides=chosen.overrides(method))
    if method in study.CODES:
        assert type(made.strategy.codec).__name__ == {"one_byte": "OneByte", "fp32": "Float32", "sign": "Sign"}[method]


def test_bytes_are_those_until_the_mean_over_seeds_is_there():
    # The means are 0.4, 0.6 and 0.9; a client sends 10 bytes a round.
    one = measured([0.3, 0.5, 0.9], [0.5, 0.7, 0.9])
    assert [one.spent(level) for level in (0.4, 0.41, 0.6, 0.61, 0.91)] == [10, 20, 20, 30, math.inf]
    # FedAvg ends at 0.9, and is half a point below it in round 3, with 3,000 bytes; the other needs 30.
    rival = measured([0.5, 0.8, 0.896, 0.9], sent=10_000)
    never = measured([0.5, 0.8])
    fewer = study.times_fewer({"rival": rival, "one": one, "never": never}, "rival", study.nearly(rival))
    assert fewer == {"rival": 1.0, "one": 100.0, "never": 0.0}


@pytest.mark.parametrize(
    ("byte", "full", "queries", "holds"),
    [(0.95, 0.959, 200, True), (0.95, 0.961, 200, False), (0.961, 0.95, 200, False), (0.95, 0.95, 202, False)],
)
def test_as_good_within_a_point_and_a_byte_a_pair(byte, full, queries, holds):
    results = {"one_byte": measured([byte], [byte], queries=queries), "fp32": measured([full], [full])}
    assert study._as_good(results)[1] is holds


@pytest.mark.parametrize(("sent", "holds"), [(100_000, True), (99_000, False)])
def test_fewer_by_the_factor(sent, holds):
    # Both get there in the second round, after 20 bytes and 20,000.
    results = {"one_byte": measured([0.5, 0.9]), "fedavg_1": measured([0.5, 0.9], sent=sent)}
    assert study._fewer("fedavg_1", 1000.0)(results)[1] is holds
    # One byte is at a half after the first round, as the other is.
    assert study._fewer("fedavg_1", 1000.0, 0.5)(results)[1] is holds
    assert not study._fewer("fedavg_1", 1.0, 0.91)(results)[1]  # which neither has


def in_turn(points, *, workers, on_done):
    """A sweep in this process."""
    outcomes = []
    for point in points:
        result = run(point.experiment, out=point.folder, force=True)
        outcomes.append(Outcome(point, result.status, result.reason, result.summary))
    return outcomes


@pytest.mark.usefixtures("unpainted")
def test_study_reads_what_it_has_run_and_counts_what_was_sent(tmp_path, monkeypatch):
    # The perceptron has 64 x 4 + 4 + 4 x 10 + 10 = 310 parameters.
    part = study.Part("Digits", 310, 1, 0.9, TINY, {"fedkseed": ("client.steps=2",), "fedavg": ("client.epochs=1",)})
    monkeypatch.setattr(study, "PARTS", {"digits": part})
    monkeypatch.setattr(studies, "run_points", in_turn)
    results = study.measure("digits", tmp_path)
    told, holds = study._counted("digits")(results)
    assert holds
    assert told.startswith("one byte 10, the same in fp32 40, the same, signs alone 3, DeComFL 80, FedES 400, FedKSeed")
    assert told.endswith("FedAvg, one step 1,240")
    one = results["fedavg_1"]
    alone = run(one.points[0].experiment, save=False).history
    assert one.accuracy.tolist() == [alone["test_accuracy"]]
    assert one.uplink.tolist() == [[1240.0, 2480.0]]
    monkeypatch.setattr(study, "PARTS", {"digits": study.Part("Digits", 311, 1, 0.9, TINY)})
    assert not study._counted("digits")(results)[1]


def test_failed_run_is_an_error(tmp_path, monkeypatch):
    def failing(points, *, workers, on_done):
        return [Outcome(point, "failed", "no data", {}) for point in points]

    monkeypatch.setattr(studies, "run_points", failing)
    with pytest.raises(fedsim.FedsimError, match="seed-0: failed: no data"):
        study.measure("digits", tmp_path)


@pytest.mark.parametrize("holds", [True, False])
def test_table_picture_and_exit_code(tmp_path, monkeypatch, capsys, holds):
    curves = {name: measured([0.5, 0.95], [0.5, 0.97], sent=100 * place) for place, name in enumerate(study.METHODS, 1)}
    console = Console(width=150, record=True)
    console.print(program.table("digits", curves))
    assert "96.0 ± 1.4" in console.export_text()  # half of 2 times the square root of 2
    monkeypatch.setattr(program, "measure", lambda part, out, **given: curves)
    monkeypatch.setattr(program, "CLAIMS", (study.Claim("may_be", "digits", "may be", lambda results: ("2", holds)),))
    call = {"part": None, "data_dir": None, "out": tmp_path, "pictures": tmp_path}
    if holds:
        program.main(**call)
    else:
        with pytest.raises(typer.Exit) as stopped:
            program.main(**call)
        assert stopped.value.exit_code == 1
    said = capsys.readouterr().out
    assert "fashion: left out" in said
    assert said.splitlines()[-1] == f"{'holds' if holds else 'FAILS'}: may be: 2"
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "fashion.png").exists()


def test_unknown_part_is_one_line(tmp_path, capsys):
    with pytest.raises(typer.Exit) as stopped:
        program.main(part=["letters"], data_dir=None, out=tmp_path, pictures=tmp_path)
    assert stopped.value.exit_code == 2
    assert capsys.readouterr().err.startswith("fedsim: part = letters")


def logistic(codec: str, trace: Path | None = None) -> float:
    """The loss after 120 rounds of eight machines, on 2,000 examples with 20 features; the labels flip at random."""
    generator = np.random.Generator(np.random.PCG64(5))
    x = generator.normal(size=(2000, 20))
    y = (1.0 / (1.0 + np.exp(-3.0 * x @ generator.normal(size=20))) > generator.uniform(size=2000)).astype(np.int64)
    model = torch.nn.Sequential(torch.nn.Linear(20, 2))
    torch.nn.init.zeros_(model[0].weight), torch.nn.init.zeros_(model[0].bias)
    machines = [range(250 * number, 250 * number + 250) for number in range(8)]
    problem = fedsim.supervised(x.astype(np.float32), y, model=model, clients=machines, test=(x, y), device="cpu")
    absent = {} if trace is None else {"availability": {"kind": "trace", "file": str(trace)}}
    settings = fedsim.experiment(
        rounds=120,
        strategy={"kind": "one_byte", "agg": "sqrt", "lr": 0.1, "codec": codec},
        client={"kind": "one_byte", "batch_size": 64},
        selection={"kind": "uniform", "fraction": 1.0},
        evaluation={"every": 0, "on": ["train"]},
        devices=absent,
    )
    result = run(settings, problem=problem, save=False)
    clients = [4 if trace and 40 <= round_ < 80 else 8 for round_ in range(120)]
    size = {"byte": 1, "fp32": 4}[codec]
    assert result.history["bytes_up"] == [size * count for count in clients]
    return float(result.summary["global_train_loss"])


def test_logistic_regression_with_a_byte_is_that_with_fp32_and_survives_absence(tmp_path):
    full, byte = logistic("fp32"), logistic("byte")
    assert full < 0.4 < math.log(2.0)
    assert byte == pytest.approx(full, rel=0.02)
    # Four of eight machines are away in rounds 40 to 79; a round takes a second.
    trace = tmp_path / "trace.csv"
    rows = [f"{client},0,{1000 if client < 4 else 40}" for client in range(8)]
    rows += [f"{client},80,1000" for client in range(4, 8)]
    trace.write_text("\n".join(["client,start,end", *rows]) + "\n")
    assert logistic("byte", trace) == pytest.approx(full, rel=0.1)
