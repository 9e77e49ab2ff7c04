"""What weighing by losses does to how they are spread, in short, and how the claim about it is judged."""

from __future__ import annotations

import numpy as np

from experiments.fairness import study
from experiments.fairness.study import Seen


def test_losses_are_more_alike_where_the_large_ones_weigh_more() -> None:
    """Twelve rounds of one seed, and where the mean loss is 1.9: q-FedAvg takes longer to come there."""
    ways = ("FedAvg", "TERM, t = 5", "q-FedAvg, q = 1")
    found = {way: study.seen(way, 0, rounds=12, mean=1.9) for way in ways}
    mean, fair, slow = found.values()
    for one in found.values():
        assert 1.8 < one.alike[0] <= 1.9
        assert one.end[1] > one.end[0] > one.end[2] > 0.0
    assert fair.alike[2] < 0.85 * mean.alike[2]
    assert fair.end[1] < mean.end[1]
    assert fair.end[0] < 1.1 * mean.end[0]
    assert slow.rounds > 1.5 * mean.rounds
    assert slow.end[0] > mean.end[0]


def told(**left: float) -> study.Results:
    """Deviations at the same mean, of all methods that of FedAvg, 0.2, unless it is named."""
    names = {"term": "TERM, t = 5", "afl": "AFL, lambda_lr = 0.01", "q": "q-FedAvg, q = 1"}
    deviations = {**dict.fromkeys(study.WAYS, 0.2), **{names[name]: value for name, value in left.items()}}
    return {
        way: [Seen(np.zeros(4), np.array([0.65, 1.0, value, 0.5]), 90) for _ in study.SEEDS]
        for way, value in deviations.items()
    }


def test_the_claim_is_about_what_is_left_of_fedavgs_deviation() -> None:
    assert study.judge(told(term=0.1, afl=0.11))[1]
    assert not study.judge(told(term=0.1))[1]
    assert not study.judge(told(afl=0.1))[1]
    assert not study.judge(told(term=0.1, afl=0.1, q=0.1))[1]
    words, _ = study.judge(told(term=0.1))
    assert "TERM, t = 5 0.100 ± 0.000" in words
    assert len(study.rows(told())) == len(study.WAYS)
