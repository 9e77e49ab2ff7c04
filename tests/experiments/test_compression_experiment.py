"""What compressors of replies cost, in short, and how the claim about it is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fedsim
from experiments.compression import layers, participation, study, weights
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


def ends(accuracy: float, each: float) -> participation.Measured:
    return participation.Measured("1.0", [np.array([[10.0, 300.0], [0.7, accuracy]])] * 3, np.full(3, accuracy), each)


def test_few_clients_are_judged_as_all_are(tmp_path: Path) -> None:
    ways = {way: ends(0.965, 100.0) for way in participation.WAYS}
    found = {**ways, participation.PLAIN: ends(0.97, 9000.0), participation.OWING: ends(0.965, 100.0)}
    assert participation.near({**found, participation.LOSSY: ends(0.95, 100.0)})[1]
    assert not participation.near(found)[1]
    assert not participation.near({**found, participation.OWING: ends(0.955, 100.0)})[1]
    participation.draw(found, tmp_path / "participation.png")
    assert len(participation.table(found).rows) == len(participation.WAYS)


def test_bytes_of_layers_are_judged_at_the_same_parameter(tmp_path: Path) -> None:
    def told(fewer: float, accuracy: float) -> layers.Results:
        known = [(one, value) for one in layers.COMPRESSORS for value in one.values]
        found = {
            (one.label, value, way): layers.Measured(np.full(3, end), 100.0 * times, [])
            for one, value in known
            for way, end, times in (
                (layers.ALIKE, 0.95, 1.0),
                (layers.NORMS, accuracy, fewer),
                (layers.SQUARES, 0.9, 1.0),
            )
        }
        return {("plain", "", ""): layers.Measured(np.full(3, 0.96), 9000.0, []), **found}

    assert layers.fewer(told(0.6, 0.945))[1]
    assert not layers.fewer(told(1.01, 0.95))[1]
    assert not layers.fewer(told(0.6, 0.93))[1]
    layers.draw(told(0.6, 0.945), tmp_path / "layers.png")


def test_all_ways_are_experiments() -> None:
    for overrides in participation.WAYS.values():
        fedsim.load(participation.HERE / "participation.toml", overrides=overrides)
    for compressor in layers.COMPRESSORS:
        for value in compressor.values:
            for override in layers.ways(compressor, value).values():
                fedsim.load(layers.HERE / "layers.toml", overrides=[override])


def test_rounds_are_as_many_times_fewer_as_steps_are_longer() -> None:
    def told(rounds: float) -> weights.Results:
        one, other = (np.full(5, number) for number in (100.0, rounds))
        return {
            (spread, way): weights.Measured(other if longer else one, np.full(5, 2.0 if longer else 1.0), np.ones(1))
            for spread in weights.SPREADS
            for way, longer in weights.WAYS.items()
        }

    assert weights.fewer(told(50.0))[1]
    assert not weights.fewer(told(60.0))[1]
    rounds, _, curve = weights.run("all alike", "EF21", 0)
    assert rounds == len(curve) < 400
    assert curve[-1] <= 1e-6 < curve[-2]
