"""What speeds and availabilities of somebody's own return is held, where it enters, to what it is to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.devices.compute import Pace
from fedsim.testing.problems import small_experiment, small_problem

ONE = np.ones(6)


@options
class Takes:
    returns: Any

    def start(self, census: Any, streams: Any, data_dir: Any) -> Any:
        return self.returns()


@options
class Sleeps:
    at: Any
    wakes: Any = None

    def start(self, population: int, streams: Any, data_dir: Any) -> Any:
        return 3 if self.at is None else self


def refused(**devices: Any) -> str:
    """What a run on such devices is refused for."""
    with pytest.raises(InputError) as caught:
        fedsim.run(small_experiment(2, devices=devices), problem=small_problem(), save=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        (lambda: Pace.constant(ONE[1:]), "start makes a Pace of 5 clients, and there are 6"),
        (lambda: Pace.constant([1.0] * 6), "start makes a Pace of something else than NumPy arrays of one dimension"),
        (lambda: Pace.constant(-ONE), "in which somebody takes -1 seconds; give numbers from 0 on"),
        (lambda: Pace.constant(ONE * np.nan), "takes nan seconds"),
        (lambda: Pace.constant(ONE * np.inf), "takes inf seconds"),
        (lambda: Pace(ONE, np.arange(6), np.full(6, 2)), "whose clients have other numbers than its 6"),
    ],
)
def test_what_speeds_return(returns, words):
    line = refused(compute=Takes(returns=returns))
    assert line.startswith(f"devices.compute.kind = {__name__}:Takes: start makes a Pace ")
    assert words in line


@pytest.mark.parametrize(
    ("at", "wakes", "words"),
    [
        (None, None, "start returns a int, without at and wakes"),
        (lambda now: ONE, lambda now: None, "at(0) is float64 [6], not bool [6]"),
        (lambda now: ONE[1:] == 1, lambda now: None, "at(0) is bool [5], not bool [6]"),
        (lambda now: [True] * 6, lambda now: None, "at(0) is a list, not bool [6]"),
        (lambda now: ONE == 0, lambda now: now, "wakes(0) is 0, not a later tick or None"),
        (lambda now: ONE == 0, lambda now: 1.5, "wakes(0) is 1.5, not a later tick"),
    ],
)
def test_what_availabilities_return(at, wakes, words):
    line = refused(availability=Sleeps(at=at, wakes=wakes))
    assert line.startswith(f"devices.availability.kind = {__name__}:Sleeps: ")
    assert words in line
