"""What unlike sensors do to normalisation, in short, and how the claim about it is judged."""

from __future__ import annotations

import numpy as np
import pytest

import fedsim
from experiments.sensors import study


@pytest.mark.parametrize(("way", "least", "most"), [("local_statistics", 0.85, 1.0), ("averaged", 0.0, 0.3)])
def test_statistics_belong_to_sensors(way: str, least: float, most: float) -> None:
    """Ten rounds of one seed."""
    loaded = fedsim.load(study.FILE, overrides=["rounds=10", *study.WAYS[way]])
    result = fedsim.run(loaded, save=False)
    assert set(result.problem.sizes.tolist()) <= {120, 121}
    assert least <= study.accuracy(result.history) <= most


def test_the_claim_is_about_all_ways() -> None:
    def judged(**changes: float) -> bool:
        means = {**study.EXPECTED, "pooled": 0.6, **changes}
        return study.judge({way: np.full(3, mean) for way, mean in means.items()})[1]

    assert judged()
    assert not judged(local_statistics=0.93)
    assert not judged(local=0.98)
    assert not judged(averaged=0.3)
    assert not judged(pooled=0.9)
    assert not judged(**{"no normalisation": 0.93})
