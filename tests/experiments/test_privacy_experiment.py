"""What privacy costs, in short, and how the claim about it is judged."""

from __future__ import annotations

from experiments.privacy import study


def test_noise_costs_accuracy_and_spends_less() -> None:
    """Twenty rounds of one seed."""
    (plain, _), (little, spent), (much, hidden) = (
        study.seen(way, 0, "rounds=20") for way in ("no privacy", "z = 0.5", "z = 4")
    )
    assert plain > little > much
    assert spent > 10 * hidden > 0.0


def told(**accuracies: float) -> study.Results:
    """Accuracies in the order of the ways, unless they are named."""
    names = {"noisy": "z = 4", "stays": "z = 1, bound of 0.02", "fresh": "z = 4, in turn"}
    usual = dict.fromkeys(study.WAYS, 0.9) | {"no privacy": 0.95, "z = 4": 0.8}
    changed = {names[name]: value for name, value in accuracies.items()}
    return {way: [(value, 1.0)] * 3 for way, value in (usual | changed).items()}


def test_the_claim_is_about_all_three() -> None:
    assert study.judge(told(stays=0.87, fresh=0.87))[1]
    assert not study.judge(told(stays=0.89, fresh=0.87))[1]
    assert not study.judge(told(stays=0.87, fresh=0.89))[1]
    assert not study.judge(told(stays=0.87, fresh=0.87, noisy=0.91))[1]
    assert len(study.rows(told())) == len(study.WAYS)
