"""Rules that measure curvature: what is measured of runs, per gradient and per second, and what is made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.optimizers import curvature
from fedsim.running.sweep import Point


def curve(level: float, gradients: float = 1.0, seconds: float = 1.0) -> curvature.Measured:
    """A rule that is at a level after each round, alike in all seeds."""
    rounds = int(curvature.BUDGET / gradients)
    return curvature.Measured(gradients, seconds, np.array([[0.1], [level]]), np.full((5, rounds), level))


def test_rules_are_compared_at_as_many_gradients_and_at_as_many_seconds():
    ramp = np.arange(1, 61) / 100 + np.zeros((5, 1))
    one = curvature.Measured(3.0, 0.5, np.array([[0.1, 0.3], [0.2, 0.1]]), ramp[:, :20])
    assert one.chosen == 0
    assert one.after(30.0, one.gradients).tolist() == [0.1] * 5  # ten rounds
    assert one.after(2.9, one.gradients).tolist() == [0.0] * 5
    assert one.after(99.0, one.gradients).tolist() == [0.2] * 5  # no more than it has had
    everything = {"sgd": curvature.Measured(1.0, 2.0, one.choosing, ramp), "adahessian": one}
    assert curvature.in_seconds(everything, "adahessian", 1 / 20).tolist() == pytest.approx([0.12] * 5)
    assert {name: round(curvature.gradients(name), 6) for name in curvature.RULES} == {
        "sgd": 1.0,
        "adam": 1.0,
        "adahessian": 3.0,
        "adahessian_floor": 3.0,
        "oasis": 4.0,
        "ai_sarah": 4.4,
        "egn": 2.0,
        "sso": round(4 + 1 / 3, 6),
    }


def test_what_is_claimed_of_curvature_follows_from_the_numbers():
    claims = {claim.name: claim.judge for claim in curvature.PART.claims}
    level = {name: curve(0.9) for name in curvature.RULES}
    likely = level | {"egn": curve(0.95, 2.0, 100.0)}
    assert {name for name, judge in claims.items() if judge(likely)[1]} == set(claims) - {"curvature_declared"}
    assert not claims["curvature_per_gradient"](level)[1]
    assert not claims["curvature_per_second"](level | {"oasis": curve(0.95)})[1]
    told, demanded = claims["curvature_declared"](level | {"sso": curve(0.9, 2.0, 5.0)})
    assert (told.count("1.000"), told.count("SSO, 4 steps 2.500"), demanded) == (len(level) - 1, 1, None)


def test_curvature_is_measured_of_rates_that_other_seeds_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of two rates the second is better on the seeds that choose; two rounds of SGD are less than one of SSO."""
    few = {name: replace(curvature.RULES[name], rates=(0.1, 0.2)) for name in ("sgd", "sso")}
    monkeypatch.setattr(curvature, "RULES", few)
    given: list[Point] = []
    monkeypatch.setattr("experiments.parts.run_all", lambda points, *rest, **more: given.extend(points))

    def told(folder: Path) -> SimpleNamespace:
        point = next(point for point in given if point.folder == folder)
        rounds, level = point.experiment.rounds, point.experiment.client.lr + point.experiment.seed / 1000
        rows = [{"test_accuracy": level + step} for step in range(rounds)]
        return SimpleNamespace(
            rows=lambda: rows, config=lambda: {"rounds": rounds}, summary=lambda: {"status": "finished"}
        )

    monkeypatch.setattr(curvature, "open_run", told)
    found = curvature.measure(tmp_path, rules=("sgd", "sso"), budget=2.0, turns=1)
    assert [found[name].told.shape for name in few] == [(5, 2), (5, 1)]
    assert found["sgd"].choosing == pytest.approx(np.array([[1.2, 1.201], [1.3, 1.301]]))
    assert found["sgd"].told[:, 0] == pytest.approx([0.2, 0.201, 0.202, 0.203, 0.204])
    assert {(type(one.experiment.client.rule).__name__, one.experiment.rounds) for one in given} == {
        ("Sgd", 2),
        ("Sso", 1),
    }
    assert min(one.seconds for one in found.values()) > 0
    again = curvature.measure(tmp_path, rules=("sgd", "sso"), budget=2.0, turns=1)
    assert [one.seconds for one in again.values()] == [one.seconds for one in found.values()]


def test_curvature_is_drawn_and_laid_out(tmp_path: Path):
    found = {name: curve(0.9) for name in curvature.RULES}
    curvature.draw(found, tmp_path / "curvature.png")
    assert (tmp_path / "curvature.png").stat().st_size > 10_000
    assert curvature.table(found).row_count == len(curvature.RULES)
