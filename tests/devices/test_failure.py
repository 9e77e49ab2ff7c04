"""Clients that fail at work."""

import numpy as np
import pytest
import torch

from fedsim.core.clock import SECOND, ticks
from fedsim.core.streams import Streams
from fedsim.devices import Census, Devices

REPAIRS = [({}, None), ({"repair_seconds": 0.0}, 0), ({"repair_seconds": 1e-6}, 1000)]


def fleet(population=4000, **options):
    return Devices(**options).start(Census(torch.full((population,), 5), lambda: None), Streams(0))


def failures(made, seconds, turn=0):
    durations = np.full(made.population, ticks(seconds))
    return made.failures(np.arange(made.population), durations, turn)


def test_nobody_fails_unless_told_to():
    made = fleet()
    assert failures(made, 1e6) is None
    assert made.repair is None


def test_times_to_failure_are_exponential():
    made = fleet(failure={"mean_seconds": 2.0})
    fails = failures(made, 1e6) / SECOND
    # All fail within 10^6 s. Mean and deviation 2, standard error 2/sqrt(4000) = 0.032; 5 of them.
    assert fails.min() > 0
    assert fails.mean() == pytest.approx(2.0, abs=0.16)
    # Half of them by 2 ln 2 s; standard error 0.5/sqrt(4000) = 0.008.
    assert (fails < 2.0 * np.log(2.0)).mean() == pytest.approx(0.5, abs=0.04)


def test_only_failures_before_the_end_count():
    made = fleet(failure={"mean_seconds": 2.0})
    always, short = failures(made, 1e6), failures(made, 1.0)
    assert short.tolist() == [tick if tick < SECOND else -1 for tick in always]
    # 1 - exp(-1/2) = 0.393; standard error 0.008.
    assert (short >= 0).mean() == pytest.approx(0.393, abs=0.04)


def test_failures_are_drawn_for_each_order():
    made = fleet(failure={"mean_seconds": 2.0})
    assert failures(made, 1e6, turn=0).tolist() == failures(made, 1e6, turn=0).tolist()
    assert len({tuple(failures(made, 1e6, turn=turn)) for turn in (0, 1, 2**32)}) == 3


@pytest.mark.parametrize(("options", "expected"), REPAIRS)
def test_repair(options, expected):
    assert fleet(failure={"mean_seconds": 2.0, **options}).repair == expected
