"""What liars do to FedAvg, in short, and how the claims about it are judged."""

from __future__ import annotations

import numpy as np
import pytest

import fedsim
from experiments.faults import study


@pytest.mark.parametrize("lie", ["times -1", "times -10"])
def test_robust_aggregators_hold_where_the_mean_does_not(lie: str) -> None:
    """Ten rounds of one seed. Honest clients get the mean to 0.92, and Krum, which follows one of them, to 0.87."""

    def accuracy(name: str) -> float:
        settings = ["rounds=10", "evaluation.every=0", f"faults={study.LIES[lie]}"]
        loaded = fedsim.load(study.FILE, overrides=[*settings, f"aggregation={study.AGGREGATORS[name]}"])
        result = fedsim.run(loaded, save=False)
        assert result.summary["total_faults"] == 90  # nine liars, ten rounds
        return float(result.summary["test_accuracy"])

    found = {name: accuracy(name) for name in study.AGGREGATORS}
    mean = found.pop("mean")
    assert mean < (0.8 if lie == "times -1" else 0.2)
    assert min(found.values()) > 0.84


def test_claims_are_about_what_liars_cost() -> None:
    def judged(**accuracy: float) -> list[bool]:
        """All at 0.95, but for those given, by lie and aggregator."""
        results = {(lie, name): np.full(3, 0.95) for lie in study.LIES for name in study.AGGREGATORS}
        results["times -10", "mean"] = np.full(3, 0.1)
        results["times -1", "mean"] = np.full(3, 0.85)
        for name, value in accuracy.items():
            results["times -1", name] = np.full(3, value)
        return [claim.judge(results)[1] for claim in study.CLAIMS]

    assert judged() == [True, True]
    assert judged(mean=0.92) == [False, True]
    assert judged(krum=0.89) == [True, False]
    assert judged(bulyan=0.92) == [True, True]
    told, _ = study.CLAIMS[0].judge({(lie, "mean"): np.array([0.5, 0.7]) for lie in study.LIES})
    assert told == "honest 0.600 ± 0.141, times -1 0.600 ± 0.141, times -10 0.600 ± 0.141"
