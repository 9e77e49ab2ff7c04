"""A search beside a grid, in short, and how the claim about it is judged."""

from __future__ import annotations

import numpy as np
import pytest

import fedsim
from experiments.tuning import study


def test_the_grid_is_even_by_the_logarithm_between_the_ends_of_the_search() -> None:
    rates = study.grid()
    assert (len(rates), rates[0], rates[-1]) == (20, 0.001, 10.0)
    assert np.diff(np.log(rates)) == pytest.approx(np.log(10_000) / 19, rel=2e-3)


def test_the_claim_is_about_accuracy_under_other_seeds_and_about_time() -> None:
    def judged(found: float = 0.97, seconds: float = 6.0) -> tuple[str, bool]:
        accuracy = np.array([[0.5] * 3, [0.96, 0.98, 1.0], [0.9] * 3])
        rates = np.array([0.01, 0.1, 1.0])
        results = study.Results(0.2, rates, accuracy, np.full(3, found), (seconds, 10.0), (100, 400))
        return study.judge(results)

    said, held = judged()
    assert held
    assert said == (
        "rate 0.2: 0.970 ± 0.000; best of the grid 0.1: 0.980 ± 0.020; 6 s and 10 s, 0.60 of it; 100 and 400 rounds"
    )
    assert not judged(found=0.969)[1]
    assert not judged(seconds=6.1)[1]
    assert not set(study.SEEDS) & set(study.OTHERS)


@pytest.mark.slow
def test_both_look_at_validation_alone_and_are_judged_on_other_seeds_with_all_the_data(tmp_path) -> None:
    results = study.measure(tmp_path, fedsim.load(study.FILE, overrides=["rounds=5", "evaluation.every=1"]))
    assert results.accuracy.shape == (20, 3)
    assert results.rounds[1] == 20 * 2 * 5
    assert results.rounds[0] < 15 * 2 * 5
    assert study.LOW <= results.found <= study.HIGH
    row = (tmp_path / "search" / "trial-0" / "seed-0" / "metrics.jsonl").read_text().splitlines()[-1]
    assert "validation_accuracy" in row
    assert "test_" not in row
