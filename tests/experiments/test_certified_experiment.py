"""The comparison of certificates: its runs in short, and what is claimed of numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fedsim
from experiments.certified import digits


def results(**changed: tuple[float, ...]) -> digits.Results:
    """Of each method the prototype's numbers, unless others are given, the same in all seeds."""
    found = {}
    for name, way in digits.WAYS.items():
        given = changed.get(name, digits.EXPECTED[name])
        curves = {kind: np.full((9, 2), one) for kind, one in zip(digits.COLUMNS, given, strict=True)}
        found[name] = digits.Measured(way.label, "0.3", np.array([5.0, 60.0]), curves)
    return digits.Results(found, found)


def judged(found: digits.Results) -> list[bool | None]:
    return [claim.judge(found)[1] for claim in digits.PART.claims]


def test_claims_are_about_what_is_certified(tmp_path: Path) -> None:
    found = results()
    assert judged(found) == [True] * 4 + [None] * 2
    assert judged(results(fal=(96.4, 76.8, 16.0, 61.2)))[0] is False
    assert judged(results(ibp=(95.9, 75.1, 54.0, 68.2)))[0] is False
    assert judged(results(mtl_ibp=(95.8, 73.0, 62.1, 65.0)))[1:3] == [False, False]
    assert judged(results(fedavg=(92.0, 62.0, 0.0, 49.3)))[3] is False
    digits.draw(found, tmp_path / "digits.png")
    assert (tmp_path / "digits.png").stat().st_size > 5_000
    assert len(digits.table(found).rows) == 8


def test_every_method_is_trained_by_its_own_loss(tmp_path: Path) -> None:
    kinds = {}
    for name in digits.WAYS:
        (point,) = digits.runs(name, "0.6", [7], tmp_path)
        resolved = point.experiment.resolved()
        assert (resolved["seed"], resolved["client"]["lr"]) == (7, 0.6)
        assert resolved["problem"]["dataset"]["split_seed"] == 7
        kinds[name] = resolved["client"].get("adversarial", {}).get("kind")
    assert kinds == {"fedavg": None, "fal": "standard", "ibp": "ibp", "mtl_ibp": "mtl_ibp"}


def test_a_run_is_measured(tmp_path: Path) -> None:
    """Three rounds at once with epsilon at its full size, of which one is judged."""
    settings = ["rounds=3", "evaluation.every=3", "evaluation.attacks_every=3", "selection.count=5"]
    settings += ["client.adversarial={kind = 'ibp', epsilon = 0.1}"]
    loaded = fedsim.load(digits.HERE / "digits.toml", overrides=settings)
    row = fedsim.run(loaded, save=False).history.rows[-1]
    ibp, crown, attacked, clean = (row[digits.COLUMNS[kind][1]] for kind in ("ibp", "crown", "pgd", "clean"))
    assert 0.0 <= ibp <= crown <= attacked <= clean
