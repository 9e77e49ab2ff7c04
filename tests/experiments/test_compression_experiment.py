"""What compressors of replies cost, in short, and how the claim about it is judged."""

from __future__ import annotations

import numpy as np

from experiments.compression import study
from experiments.compression.study import Seen


def told(owing: float, lossy: float, share: float) -> study.Results:
    """Accuracies at the end, and the share of the bytes of plain replies, which end at 0.96."""
    ends = {**dict.fromkeys(study.WAYS, 0.96), "EF14, top 1 %": owing, "top 1 %": lossy}
    return {
        way: [Seen(np.full(100, end), np.arange(1, 101) * (1.0 if way == "plain" else share)) for _ in study.SEEDS]
        for way, end in ends.items()
    }


def test_the_claim_is_about_a_point_and_a_fiftieth_of_the_bytes() -> None:
    words, held = study.judge(told(0.955, 0.94, 1 / 70))
    assert held
    assert "at 1/70 of the bytes" in words
    assert not study.judge(told(0.945, 0.94, 1 / 70))[1]
    assert not study.judge(told(0.955, 0.955, 1 / 70))[1]
    assert not study.judge(told(0.955, 0.94, 1 / 40))[1]
    assert len(study.rows(told(0.955, 0.94, 1 / 70))) == len(study.WAYS)
