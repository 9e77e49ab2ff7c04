"""What a server that distils makes of one round, in short, and how the claim about it is judged."""

from __future__ import annotations

import numpy as np

import fedsim
from experiments.distillation import study

TEACHING = "FedDF, probabilities by examples"


def test_in_one_round_probabilities_are_ahead() -> None:
    """A few epochs of one seed."""
    found = {}
    for way in ("FedAvg", TEACHING):
        changes = [*study.SETTINGS["one round"], "client.epochs=10", "strategy.steps=100"]
        kept = changes if way != "FedAvg" else changes[:-1]
        loaded = fedsim.load(study.FILE, overrides=[*kept, *study.WAYS[way]])
        result = fedsim.run(loaded, save=False)
        assert len(result.problem.public) == 300
        found[way] = result.history.last("test_accuracy")
    assert found[TEACHING] > found["FedAvg"] + 0.1


def test_the_claim_is_about_all_of_its_numbers() -> None:
    means = {
        **dict.fromkeys([(setting, way) for setting in study.SETTINGS for way in study.WAYS], 0.8),
        ("one round", "FedAvg"): 0.5,
        ("ten rounds", TEACHING): 0.6,
    }

    def judged(seed: float = 0.0, **changes: float) -> bool:
        apart = {tuple(name.split("_")): mean for name, mean in changes.items()}
        results = {key: np.full(5, mean) for key, mean in (means | apart).items()}
        results["one round", TEACHING][0] -= seed
        return study.judge(results)[1]

    assert judged()
    assert not judged(seed=0.35)
    assert not judged(**{"one round_FedAvg": 0.75})
    assert not judged(**{"ten rounds_FedAvg": 0.9})
    assert not judged(**{f"ten rounds_{TEACHING}": 0.75})
