"""Schedules from the history of a run."""

from __future__ import annotations

import json
import sys
import tomllib

import numpy as np
import pytest

import fedsim
from fedsim.cli.main import main
from fedsim.core.errors import InputError
from fedsim.core.schedules import Linear
from fedsim.reports.refined import refined, schedule_of, smoothed

SMALL = {
    "partition": {"kind": "dirichlet", "clients": 4, "alpha": 1.0},
    "selection": {"kind": "uniform", "count": 2},
    "evaluation": {"every": 0, "clients": False},
}


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_published_oracle():
    # w = 1, 1/4, 1/16, 1/4, 1; what is later: 1.5625, 1.3125, 1.25, 1, 0: products over the first, 1.5625.
    factors = refined(np.array([1.0, 2.0, 4.0, 2.0, 1.0]) ** -2)
    assert factors == pytest.approx([1.0, 0.21, 0.05, 0.16, 0.0], abs=1e-12)
    assert factors[-1] == 0.0


def test_norms_that_are_all_the_same_give_the_linear_schedule():
    assert refined(np.full(5, 0.3)) == pytest.approx([Linear(rounds=4).factor(r) for r in range(5)], abs=1e-12)


def test_medians_have_a_width_and_ends():
    # T = 6 and a share of 0.5: half = floor(1.5) = 1. Before the first stands 9 again, behind the last 4 again.
    norms = np.array([9.0, 1.0, 5.0, 2.0, 8.0, 4.0])
    assert smoothed(norms, 0.5).tolist() == [9.0, 5.0, 2.0, 5.0, 4.0, 4.0]
    # Half = 2: behind the last stand 4 and 8, so that the last median is that of 2, 8, 4, 4, 8... and not of 4, 4.
    assert smoothed(norms, 0.8).tolist() == [9.0, 5.0, 5.0, 4.0, 4.0, 4.0]
    assert smoothed(norms, 0.3).tolist() == norms.tolist()


def test_a_run_reports_how_long_its_changes_were():
    """As the model's own steps, of which the server's rate of 0.5 makes half."""
    strategy, models = {"kind": "fedavg", "server_lr": 0.5, "report_norms": True}, []
    client = {"kind": "sgd", "steps": 1, "batch_size": 4}

    def keep(told):
        models.append((told.params.double(), told.row))

    fedsim.run(**SMALL, strategy=strategy, client=client, rounds=2, save=False, callbacks=[keep])
    (first, _), (second, row) = models
    assert row["change_norm"] == pytest.approx(float((second - first).norm()) / 0.5, rel=1e-5)
    assert row["change_norm_l1"] == pytest.approx(float((second - first).abs().sum()) / 0.5, rel=1e-5)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refined") / "run"
    schedule = {"kind": "exponential", "gamma": 0.5}
    strategy = {"kind": "fedavg", "server_lr": 0.5, "report_norms": True}
    client = {"kind": "sgd", "steps": 1, "batch_size": 4, "schedule": schedule}
    fedsim.run(**SMALL, strategy=strategy, client=client, rounds=4, out=folder)
    return folder


def test_a_runs_own_rates_are_taken_out_of_what_it_tells(ran):
    rows = [json.loads(line) for line in (ran / "metrics.jsonl").read_text().splitlines()]
    own = np.array([row["change_norm"] * 2.0**number for number, row in enumerate(rows)])
    weights = own**-2
    expected = [weights[r] * weights[r + 1 :].sum() for r in range(4)]
    assert schedule_of(ran, smooth=0.0) == pytest.approx(np.array(expected) / max(expected), abs=1e-12)


def test_l1_norms_weigh_by_their_first_power(ran):
    rows = [json.loads(line) for line in (ran / "metrics.jsonl").read_text().splitlines()]
    weights = np.array([1.0 / (row["change_norm_l1"] * 2.0**number) for number, row in enumerate(rows)])
    expected = [weights[r] * weights[r + 1 :].sum() for r in range(4)]
    assert schedule_of(ran, "l1", 0.0) == pytest.approx(np.array(expected) / max(expected), abs=1e-12)


def test_the_command_writes_what_an_experiment_reads(monkeypatch, capsys, ran, tmp_path):
    out = tmp_path / "refined.toml"
    assert call(monkeypatch, "schedule", str(ran), "--out", str(out), "--smooth", "0") == 0
    loaded = fedsim.experiment(client={"kind": "sgd", "epochs": 1, "schedule": {"kind": "table", "factors": str(out)}})
    assert loaded.client.schedule.factors == tuple(schedule_of(ran, smooth=0.0))
    capsys.readouterr()
    assert call(monkeypatch, "schedule", str(ran), "--smooth", "0") == 0
    assert tomllib.loads(capsys.readouterr().out)["factors"] == list(loaded.client.schedule.factors)
    assert call(monkeypatch, "schedule", str(ran), "--out", str(out)) == 2
    assert call(monkeypatch, "schedule", str(ran), "--norm", "l3") == 2
    assert call(monkeypatch, "schedule", str(ran), "--smooth", "1.5") == 2
    said = capsys.readouterr().err
    assert "this file exists" in said
    assert "norm = l3: name one of: l2, l1" in said
    assert call(monkeypatch, "schedule", str(ran), "--out", str(out), "--force") == 0


def told(tmp_path, rows, client=None):
    (tmp_path / "config.toml").write_text(f'[client]\nkind = "sgd"\n{client or ""}')
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "client", "said"),
    [
        ([{"round": 1}, {"round": 2}], None, "does not say how long its changes were; run it with strategy.report_n"),
        ([{"round": 2, "change_norm": 1.0}, {"round": 4, "change_norm": 1.0}], None, "has not a row a round"),
        ([{"round": 1, "change_norm": 1.0}, {"round": 2}], None, "round 2 tells of no gradient, for nobody moved"),
        ([{"round": 1, "change_norm": 0.0}, {"round": 2, "change_norm": 1.0}], None, "round 1 tells of no gradient"),
        (
            [{"round": 1, "change_norm": 1.0}, {"round": 2, "change_norm": 1.0}],
            'schedule = { kind = "linear", rounds = 1 }',
            "round 2 tells of no gradient, for its rate was 0",
        ),
        ([{"round": 1, "change_norm": 1.0}], None, "has a single round"),
        (
            [{"round": 1, "change_norm": 1.0}, {"round": 2, "change_norm": 1.0}],
            'epochs_schedule = { kind = "linear", rounds = 1 }',
            "rounds differ in their epochs",
        ),
    ],
)
def test_runs_that_do_not_tell_are_refused_in_a_line(tmp_path, rows, client, said):
    with pytest.raises(InputError, match=said):
        schedule_of(told(tmp_path, rows, client))


def test_a_run_that_has_not_ended_is_refused(tmp_path):
    """Of two rounds of several the second would have the factor 0, and so all that follow it."""
    rows = [{"round": number, "change_norm": 1.0} for number in (1, 2)]
    with pytest.raises(InputError, match=r"run = .* is interrupted: .* fall to 0 where it has come to; have it end"):
        schedule_of(told(tmp_path, rows))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        schedule_of(tmp_path / "nowhere")
