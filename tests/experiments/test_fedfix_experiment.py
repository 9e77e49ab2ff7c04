"""FedFix's comparison: its files, what is measured of its runs, and what it takes for a claim to hold."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console

import fedsim
from experiments import studies
from experiments.fedfix import __main__ as program
from experiments.fedfix import study
from experiments.fedfix.study import Measured
from fedsim.configuration.tables import load
from fedsim.running.build import build_problem
from fedsim.running.runner import run
from fedsim.running.sweep import Outcome, Point

CLAIMS = {claim.name: claim for claim in study.CLAIMS}
TINY = [
    "problem.dataset=digits",
    "partition.size=20",
    "partition.test_size=5",
    "client.steps=2",
    "client.batch_size=10",
    "duration=3.0",
]


def measured(*losses, lr=0.1, points=()):
    """A scheme whose seeds have these losses, the same at all forty seconds, or one for each of them."""
    curves = np.array([np.broadcast_to(loss, 40) for loss in losses], dtype=float)
    return Measured(lr, curves, 1.0 - curves, 1.0 - curves, points)


def compared(fedfix, fedavg, free):
    return {"unequal": {"fedfix_05": [fedfix], "fedavg": [fedavg], "async_unbiased": [free]}}


def tiny(scheme, *overrides, seed=0):
    return load(study.HERE / f"{scheme}.toml", overrides=[*TINY, *overrides], seed=seed)


def test_files_differ_in_the_scheme_alone():
    files = {scheme: tomllib.loads((study.HERE / f"{scheme}.toml").read_text()) for scheme in study.SCHEMES}
    for tables in files.values():
        del tables["name"], tables["strategy"], tables["client"]["lr"]
    assert all(tables == files["fedavg"] for tables in files.values())
    assert {path.stem for path in study.HERE.glob("*.toml")} == set(files)


def test_measures_are_means_over_time():
    # 1 for 20 s, then 0.8 and 0.4 in turn: the mean is (20 x 1 + 20 x 0.6) / 40, and each second changes it by 0.4.
    waving = measured(np.concatenate([np.ones(20), np.tile([0.8, 0.4], 10)]))
    assert waving.area == pytest.approx([0.8])
    assert waving.tail == pytest.approx([0.6])
    assert waving.restlessness == pytest.approx([0.4])
    assert waving.reached == 22.0
    # The mean over the seeds is 0.55 - 0.01 t for t = 0 .. 39, first at most 0.5 at the sixth second.
    falling = np.linspace(0.55, 0.16, 40)
    assert measured(falling + 0.3, falling - 0.3 + 1e-9).reached == 7.0
    assert measured(falling + 0.3, falling - 0.3 - 1e-9).reached == 6.0
    assert math.isinf(measured(0.6).reached)


def test_best_rate_has_the_least_loss_over_time_and_seeds():
    # In the last 15 seconds the first is better, 0.1 < 0.2; over time it is worse, (25 x 0.9 + 15 x 0.1) / 40 = 0.6.
    grid = [measured([0.9] * 25 + [0.1] * 15, lr=0.1), measured(0.2, lr=0.2), measured(0.3, lr=0.4)]
    assert study.best(grid).lr == 0.2


@pytest.mark.parametrize(
    ("fedfix", "fedavg", "free", "holds"),
    [
        ((0.3,) * 5, (0.4,) * 5, (0.5,) * 5, True),
        ((0.3, 0.3, 0.3, 0.3, 0.9), (0.4,) * 5, (0.5,) * 5, True),  # four of five seeds are enough
        ((0.3, 0.3, 0.3, 0.9, 0.9), (0.4,) * 5, (0.5,) * 5, False),
        ((0.3,) * 5, (0.4,) * 5, (0.5, 0.5, 0.5, 0.4, 0.4), False),
    ],
)
def test_order(fedfix, fedavg, free, holds):
    assert CLAIMS["ordered"].judge(compared(measured(*fedfix), measured(*fedavg), measured(*free)))[1] is holds


@pytest.mark.parametrize(("fedfix", "holds"), [(9, True), (10, False), (None, False)])
def test_sooner_by_a_tenth(fedfix, holds):
    # FedAvg takes ten seconds.
    curves = [np.where(np.arange(1, 41) < (second or 99), 1.0, 0.4) for second in (fedfix, 10)]
    results = compared(*map(measured, curves), measured(1.0))
    assert CLAIMS["sooner"].judge(results)[1] is holds


def test_level_that_nobody_reaches_is_not_reached_sooner():
    assert CLAIMS["sooner"].judge(compared(measured(1.0), measured(1.0), measured(1.0)))[1] is False


@pytest.mark.parametrize(("swing", "holds"), [(0.21, True), (0.19, False)])
def test_restless_by_twenty_times(swing, holds):
    # FedAvg's loss changes by 0.01 a second.
    waves = {"fedavg": 0.01, "fedfix_05": 0.01, "async_unbiased": swing}
    results = {scheme: [measured(np.tile([1.0, 1.0 + size], 20))] for scheme, size in waves.items()}
    assert CLAIMS["restless"].judge({"momentum": results})[1] is holds


@pytest.mark.parametrize(("fedfix", "holds"), [(0.494, True), (0.492, False), (0.6, True)])
def test_no_gain_but_for_the_margin(fedfix, holds):
    # FedAvg's loss is 0.5, and 0.007 below it counts as equal.
    results = {"equal": {"fedfix_05": [measured(fedfix)]}, "unequal": {"fedavg": [measured(0.5)]}}
    assert CLAIMS["no_gain"].judge(results)[1] is holds


def test_tuned_means_that_the_middle_of_the_grid_is_best():
    losses = {"low": (0.1, 0.2, 0.3), "inside": (0.3, 0.2, 0.3), "high": (0.3, 0.2, 0.1)}
    verdicts = {}
    for name, grid in losses.items():
        results = {"equal": {"fedavg": [measured(loss, lr=lr) for lr, loss in enumerate(grid)]}, "unequal": {}}
        verdicts[name] = CLAIMS["tuned"].judge(results)[1]
    assert verdicts == {"low": False, "inside": True, "high": False}


@pytest.mark.parametrize(
    ("unbiased", "identical", "holds"),
    [
        ((0.12, 0.12, 0.12, 0.12, 0.12), (0.2,) * 5, True),  # 0.02 and 0.1 beyond FedAvg's 0.1
        ((0.16, 0.16, 0.16, 0.16, 0.16), (0.2,) * 5, False),  # 0.06 is more than half of 0.1
        ((0.04, 0.04, 0.04, 0.04, 0.04), (0.2,) * 5, False),  # so is it below
        ((0.1, 0.1, 0.1, 0.1, 0.1), (0.3, 0.3, 0.3, 0.0, 0.0), False),  # in three of five seeds only
        ((0.9, 0.12, 0.12, 0.12, 0.12), (0.2,) * 5, True),  # one restless run does not decide
    ],
)
def test_bias_is_beyond_that_of_fedavg(monkeypatch, unbiased, identical, holds):
    gaps = [np.full(5, 0.1), *[np.array(unbiased)] * 3, *[np.array(identical)] * 3]
    monkeypatch.setattr(study, "behind", lambda schemes: gaps[: len(schemes)])
    each = {scheme: [measured(1.0)] for scheme in study.WEIGHTED}
    results = {"by_class": {"fedavg": [measured(1.0)]}, "by_class_unbiased": each, "by_class_identical": each}
    assert CLAIMS["biased"].judge(results)[1] is holds


def test_slower_half_is_that_of_the_longer_durations(tmp_path):
    experiment = tiny("fedavg", "devices.compute.by=label", seed=3)
    folder = tmp_path / "run"
    final = run(experiment, out=folder).params
    (found,) = study.behind([measured(1.0, points=(Point(experiment, folder),))])
    problem = build_problem(experiment)
    labels = [
        float(problem.data.y[problem.data.order[begin : begin + 20]].float().mean())
        for begin in problem.data.begin.tolist()
    ]
    losses = problem.losses(final, torch.arange(20))[:, 0].numpy()
    # By ascending mean label the first ten are the slowest.
    ranked = losses[np.argsort(labels, kind="stable")]
    assert found == pytest.approx([ranked[:10].mean() - ranked[10:].mean()])


def test_equal_speeds_change_nothing_for_fedavg():
    unequal, equal = (run(tiny("fedavg", f"devices.compute.spread={spread}"), save=False) for spread in (80, 0))
    assert unequal.history["global_train_loss"] == equal.history["global_train_loss"]
    assert unequal.history["time"] == equal.history["time"] == [1.0, 2.0, 3.0]


def in_turn(points, *, workers, on_done):
    """A sweep in this process."""
    outcomes = []
    for point in points:
        result = run(point.experiment, out=point.folder, force=True)
        outcomes.append(Outcome(point, result.status, result.reason, result.summary))
    return outcomes


@pytest.mark.usefixtures("unpainted")
def test_study_reads_what_it_has_run(tmp_path, monkeypatch):
    parts = {
        "unequal": study.Part(("fedavg",), tuple(TINY), tuned=True),
        "momentum": study.Part(("fedfix_05",), (*TINY, "client.lr=0.01", "client.optimizer.momentum=0.9")),
    }
    monkeypatch.setattr(study, "PARTS", parts)
    monkeypatch.setattr(studies, "run_points", in_turn)
    results = study.measure(tmp_path, data_dir=None, seeds=[0, 2])
    rate = tiny("fedavg").client.lr
    assert [one.lr for one in results["unequal"]["fedavg"]] == [rate / 2, rate, rate * 2]
    assert [one.lr for one in results["momentum"]["fedfix_05"]] == [0.01]
    alone = run(tiny("fedavg", f"client.lr={rate * 2}", seed=2), save=False).history
    last = results["unequal"]["fedavg"][2]
    for curves, column in ((last.loss, "global_train_loss"), (last.accuracy, "test_accuracy")):
        assert curves[1].tolist() == alone[column]
    assert last.own[1].tolist() == alone["client_accuracy_mean"]


def test_run_that_diverged_has_an_infinite_loss_from_there_on(tmp_path):
    experiment = tiny("fedavg")
    (tmp_path / "metrics.jsonl").write_text(
        '{"global_train_loss": 2.0, "test_accuracy": 0.3, "client_accuracy_mean": 0.4}\n'
    )
    found = study._read(0.1, [Point(experiment, tmp_path), Point(experiment, Path(tmp_path / "absent"))])
    assert found.loss.tolist() == [[2.0, math.inf, math.inf], [math.inf] * 3]
    assert found.accuracy.tolist() == [[0.3, 0.0, 0.0], [0.0] * 3]


def test_failed_run_is_an_error(tmp_path, monkeypatch):
    def failing(points, *, workers, on_done):
        return [Outcome(point, "failed", "no data", {}) for point in points]

    monkeypatch.setattr(studies, "run_points", failing)
    with pytest.raises(fedsim.FedsimError, match="seed-0: failed: no data"):
        study.measure(tmp_path, data_dir=None, seeds=[0])


def test_table_and_picture(tmp_path):
    falling = np.linspace(0.55, 0.16, 40)
    tuned = {"fedavg": measured(falling, falling + 0.02, lr=0.08), "fedfix_05": measured(1.0, lr=0.04)}
    console = Console(width=140, record=True)
    console.print(program.table(tuned))
    text = console.export_text()
    # The mean over time of 0.55 .. 0.16 is 0.355, with the other seed 0.365 ± 0.01 sqrt(2).
    assert "0.365 ± 0.014" in text
    assert "0.08" in text
    assert "inf" in text
    program.draw(tuned, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("holds", [True, False])
def test_exit_code_says_whether_all_claims_hold(tmp_path, monkeypatch, capsys, holds):
    claims = (
        study.Claim("sure", "is true", lambda results: ("1", True)),
        study.Claim("open", "may be", lambda results: ("2", holds)),
    )
    monkeypatch.setattr(program, "CLAIMS", claims)
    monkeypatch.setattr(program, "measure", lambda out, **given: {"unequal": {"fedavg": [measured(0.5, lr=0.08)]}})
    call = {"data_dir": tmp_path, "out": tmp_path, "seeds": "0-1", "picture": tmp_path / "figure.png"}
    if holds:
        program.main(**call)
    else:
        with pytest.raises(typer.Exit) as stopped:
            program.main(**call)
        assert stopped.value.exit_code == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["holds: is true: 1", f"{'holds' if holds else 'FAILS'}: may be: 2"]


def test_input_that_cannot_be_used_is_one_line(tmp_path, capsys):
    with pytest.raises(typer.Exit) as stopped:
        program.main(data_dir=tmp_path, out=tmp_path, seeds="1-0", picture=tmp_path / "figure.png")
    assert stopped.value.exit_code == 2
    assert capsys.readouterr().err.startswith("fedsim: seeds = 1-0: ")
