"""The comparison of personal models: what is run of methods, what is chosen, what is claimed, and that it runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.parts import Claim, Part, program
from experiments.personal import HERE, settings, study, untuned
from experiments.personal.methods import METHODS, Method
from fedsim.configuration.tables import load


def row(values: list[float], label: str = "one") -> study.Row:
    return study.Row(label, {}, dict.fromkeys(study.COLUMNS, np.array(values)))


def test_every_choice_of_every_method_is_an_experiment():
    for method in METHODS.values():
        choices = list(method.choices(("0.1",)))
        assert choices
        for choice in choices:
            load(HERE / "digits.toml", overrides=method.overrides(choice, "full"))


def test_who_has_no_model_of_its_own_is_tuned_at_the_rate_of_training_or_a_tenth():
    choice, slower = METHODS["fedavg"].choices(("0.3",))
    assert (choice["tune"], slower["tune"]) == ("0.3", "0.03")
    changes = METHODS["fedavg"].overrides(choice, "20")
    assert changes == [
        *("client.lr=0.3", "evaluation.finetune.steps=5"),
        *("evaluation.finetune.lr=0.3", "evaluation.finetune.batch_size=20"),
    ]
    assert METHODS["ditto"].overrides({"lr": "0.3", "lam": "0.1"}, "20") == [
        *("client.lr=0.3", "client.kind=ditto", "client.lam=0.1"),
    ]


def test_choices_are_those_of_rates_and_knobs():
    method = Method("m", knobs={"lam": ("1", "2")})
    assert list(method.choices(("a", "b"))) == [{"lr": one, "lam": two} for one in "ab" for two in "12"]
    assert [choice["lr"] for choice in replace(method, rates=("c",)).choices(("a", "b"))] == ["c", "c"]


def test_one_is_ahead_by_a_paired_test():
    results = {"low": row([0.90, 0.91, 0.89, 0.90, 0.92]), "high": row([0.93, 0.935, 0.925, 0.93, 0.95], "other")}
    said, held = study.ahead(results, "high", "low")
    assert held
    assert "+0.030" in said
    assert not study.ahead(results, "low", "high")[1]
    noisy = {"low": row([0.90, 0.91, 0.89, 0.90, 0.92]), "high": row([0.98, 0.88, 0.91, 0.87, 0.95])}
    assert not study.ahead(noisy, "high", "low")[1]


def test_all_are_told_from_a_baseline_after_holms_correction():
    base = [0.90, 0.91, 0.89, 0.90, 0.92]
    high = [value + add for value, add in zip(base, [0.03, 0.025, 0.035, 0.03, 0.03], strict=True)]
    noisy = [0.98, 0.88, 0.91, 0.87, 0.95]
    low = [value - add for value, add in zip(base, [0.03, 0.025, 0.035, 0.03, 0.03], strict=True)]
    results = {
        "fedavg+": row(base),
        "high": row(high, "high"),
        "noisy": row(noisy, "noisy"),
        "same": row(base, "same"),
        "local": row(low, "low"),
    }
    found = study.against_all(results, "fedavg+")
    once = study.paired(results, "high", "fedavg+").p
    assert once is not None
    # Four tests, of which this and that of the low row have equal p, the least: the first of them counts four times.
    assert found["high"] == (pytest.approx(0.03), pytest.approx(4 * once))
    assert found["same"][1] == 1.0
    said, demanded = settings.told_apart(results)
    assert demanded is None
    assert said.startswith("ahead of FedAvg + fine-tuning: high +0.030; behind it: low -0.030")
    assert "+0.030" in "".join(map(str, study.table(results).columns[5].cells))


def test_the_prototype_is_met_or_surpassed():
    level = {name: row([value] * 3) for name, value in untuned.EXPECTED.items()}
    assert untuned.as_expected(level)[1]
    assert untuned.as_expected({name: row([value + 0.1] * 3) for name, value in untuned.EXPECTED.items()})[1]
    assert not untuned.as_expected(level | {"ditto": row([0.968 - 0.016] * 3)})[1]
    assert untuned.in_each_seed(level)[1]
    assert not untuned.in_each_seed(level | {"fedavg+": row([0.961, 0.961, 0.93])})[1]


@pytest.mark.usefixtures("forked_workers")
def test_a_part_chooses_by_other_seeds_runs_and_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    few = replace(settings.DIGITS, rates=("0.01", "0.5"), choosing=range(100, 101), methods=("fedavg",))
    monkeypatch.setattr(study, "TOLD", range(2))
    short = [*METHODS["fedavg"].changes, "rounds=2"]
    monkeypatch.setattr(study, "METHODS", {"fedavg": replace(METHODS["fedavg"], changes=tuple(short))})
    claim = Claim("order", "best first", settings.best)
    part = Part(
        tmp_path, "digits", lambda out, **given: study.measure(few, out, **given), study.table, study.draw, (claim,)
    )
    monkeypatch.setattr(sys, "argv", ["personal", "digits", "--out", str(tmp_path / "runs"), "--workers", "1"])
    with pytest.raises(SystemExit) as ended:
        program({"digits": part}, tmp_path)
    told = capsys.readouterr().out
    assert ended.value.code == 0, told
    assert "measured: best first: FedAvg" in told
    assert "lr 0.5" in told
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    runs = sorted(path.parent.name for path in (tmp_path / "runs").rglob("summary.json"))
    assert runs == ["seed-0", "seed-1", *["seed-100"] * 4]
