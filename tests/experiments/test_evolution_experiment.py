"""The experiments of evolution: the pole's physics, what is claimed of numbers, and that pictures are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedsim
from experiments.evolution import HERE, cartpole, digits, sketches, whole

FLAT = np.full((3, 12), 0.8)


def test_a_pole_falls_by_the_equations_of_motion() -> None:
    """Always to the right: the angle goes as one step by hand says, and it is down after some ten steps."""
    right = np.zeros(cartpole.NUMBERS)
    right[57] = 1.0
    pole = cartpole.CartPole((0.0, 0.0, 0.0, 0.0))
    assert 5 < -pole(right) < 15
    assert pole(-right) == pole(right)
    # Balanced by hand: to where it leans, and falls.
    wise = np.zeros(cartpole.NUMBERS)
    wise[:4], wise[48] = (0.05, 0.1, 3.0, 0.7), 1.0
    assert -pole(wise) == cartpole.LONGEST
    starts = [one.start for one in cartpole.functions(0)]
    assert len(set(starts)) == cartpole.STARTS
    assert np.abs(starts).max() <= 0.05


def test_poles_are_balanced_better_by_evolution() -> None:
    steps, genes = cartpole.evolved(0.2, 0, generations=3)
    assert steps.shape == genes.shape == (3,)
    assert steps[-1] > 60.0


def test_files_can_be_run() -> None:
    for name, (_, option, values, changes) in digits.GRIDS.items():
        made = fedsim.load(HERE / "digits.toml", overrides=(*changes, f"{option}={values[0]}"))
        queries = made.strategy.population if name == "genetic" else 100
        assert queries == 100
    for _, changes in sketches.WAYS.values():
        fedsim.load(HERE / "sketches.toml", overrides=changes)


def test_claims_are_about_ends(tmp_path: Path) -> None:
    ways = {
        name: digits.Measured(name, "1", np.arange(12.0), FLAT, np.full(3, 10.0), np.ones(3), np.ones(3))
        for name in digits.GRIDS
    }
    assert digits.learns(ways)[1] is False
    assert digits.chains(ways)[0].startswith("128 ± 0 bytes")
    held = {name: sketches.Measured(name, "1", np.arange(1.0, 13.0), FLAT, np.full(3, end)) for name, end in
            {"fedavg": 0.9, "tenth": 0.88, "hundredth": 0.6, "half": 0.95, "hundredth_half": 0.88}.items()}  # fmt: skip
    assert sketches.factor(held)[1] is True
    assert sketches.hundredth(held)[1] is True
    assert sketches.hundredth({**held, "hundredth_half": held["hundredth"]})[1] is False
    assert sketches.factor({**held, "half": held["hundredth"]})[1] is False
    assert "at the end 0.600" in sketches.saved(held)[0]
    assert sketches.spent(held["fedavg"]) == 1.0
    poles = {"chosen": cartpole.Measured("power 0.2", 500 * FLAT, FLAT)}
    assert cartpole.balances(poles)[1] is False
    assert cartpole.balances({"chosen": cartpole.Measured("power 0.2", 600 * FLAT, FLAT)})[1] is True
    for part, results in ((digits.PART, ways), (sketches.PART, held), (cartpole.PART, poles)):
        part.draw(results, tmp_path / f"{part.name}.png")
        assert (tmp_path / f"{part.name}.png").stat().st_size > 5_000
        assert len(part.table(results).rows) == len(results)


def test_an_ellipsoid_is_least_at_its_centres_and_searched_with_whole_numbers(tmp_path: Path) -> None:
    values = dict(zip(whole.SPACE, whole.CENTRES, strict=True))
    assert whole.ellipsoid(values) == 0.0
    assert whole.ellipsoid({**values, "x0": 1.4}) == 0.0
    assert whole.ellipsoid({**values, "x9": 0.25}) == pytest.approx(100.0)
    assert whole.problem(whole.SPACE).space.typed(whole.problem(whole.SPACE).initial())["x0"] == 5
    pytest.importorskip("cma")
    lowest = whole.searched("package", 0, 100)
    assert lowest.shape == (10,)
    assert lowest[-1] < lowest[0]
    ends = {"margin": 0.0, "package": 0.0, "rounded": 1.0}
    found = {way: whole.Measured(way, np.full((10, 4), end)) for way, end in ends.items()}
    assert whole.often(found)[1] is True
    whole.draw(found, tmp_path / "whole.png")
    assert len(whole.table(found).rows) == 3
