"""Who can start when."""

import numpy as np
import pytest
import torch

from fedsim.core.clock import SECOND, ticks
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.devices import Census, Devices

BERNOULLI = {"kind": "bernoulli", "probability": 0.3, "period": 2.0}
DIURNAL = {"kind": "diurnal", "mean": 0.5, "amplitude": 0.4, "day": 24.0, "period": 1.0}
MARKOV = {"kind": "markov", "mean_on": 6.0, "mean_off": 3.0, "period": 1.0}
# P(on | off) = 1/1.5 is above P(on | on) = 1 - 1/2: the chain alternates more often than not.
RESTLESS = {"kind": "markov", "mean_on": 2.0, "mean_off": 1.5, "period": 1.0}
RANDOM = [BERNOULLI, DIURNAL, MARKOV, RESTLESS]


def fleet(availability, population=10, seed=0, data_dir=None):
    census = Census(torch.full((population,), 5), lambda: None)
    return Devices(availability=availability).start(census, Streams(seed), data_dir)


def states(made, slots, period=1.0):
    """bool [slots, N]."""
    return np.stack([made.available(slot * ticks(period)) for slot in range(slots)])


def test_always():
    made = fleet("always")
    assert made.available(0) is None
    assert made.wakes(0) is None


@pytest.mark.parametrize("availability", RANDOM)
def test_it_is_constant_until_it_wakes(availability):
    made, period = fleet(availability), ticks(availability["period"])
    for slot in (0, 1, 7):
        begin = slot * period
        state = made.available(begin).tolist()
        for now in (begin, begin + 1, begin + period - 1):
            assert made.wakes(now) == begin + period
            assert made.available(now).tolist() == state
    assert len({tuple(row) for row in states(made, 10, availability["period"])}) > 5


@pytest.mark.parametrize("availability", RANDOM)
def test_any_order_of_questions_and_any_company(availability):
    expected = states(fleet(availability), 12, availability["period"])
    period = ticks(availability["period"])
    made = fleet(availability)
    for slot in (11, 3, 3, 4, 9, 0, 1, 10, 2, 11):
        assert made.available(slot * period).tolist() == expected[slot].tolist()
    # The first four clients are the same among four as among ten.
    assert states(fleet(availability, 4), 12, availability["period"]).tolist() == expected[:, :4].tolist()
    assert states(fleet(availability, seed=1), 12, availability["period"]).tolist() != expected.tolist()


@pytest.mark.parametrize("availability", RANDOM)
def test_nobody_writes_to_it(availability):
    with pytest.raises(ValueError, match="read-only"):
        fleet(availability).available(0)[0] = True


def test_slots_beyond_one_word_of_the_counter():
    made = fleet(BERNOULLI, 200)
    late = made.available(2**32 * ticks(2.0))
    assert late.tolist() != made.available(0).tolist()


def test_bernoulli():
    drawn = states(fleet(BERNOULLI, 400), 50, 2.0)
    # 20000 draws with mean 0.3: standard error sqrt(0.21/20000) = 0.0032; 5 of them.
    assert drawn.mean() == pytest.approx(0.3, abs=0.016)
    # Independent from period to period: both with 0.09, standard error 0.002.
    assert (drawn[1:] & drawn[:-1]).mean() == pytest.approx(0.09, abs=0.01)


def test_diurnal_probabilities():
    population = 400
    drawn = states(fleet(DIURNAL, population), 24 * 50)
    # Each client's phase is found again from its hours over 50 days. Its first harmonic is, as the mean of an hour is
    # 0.5 + 0.4 sin(2 pi (h/24 + phase)), 0.2 in size; 1200 draws give it a standard error of 0.5/sqrt(1200) = 0.014.
    hours = np.arange(24 * 50)
    harmonic = (drawn * np.exp(-2j * np.pi * hours / 24)[:, None]).mean(0)
    assert np.abs(harmonic).mean() == pytest.approx(0.2, abs=0.005)
    # The phases cover the day: sin(2 pi phase) = 2 Re(...) has the angle phase - 1/4, whose mean direction vanishes as
    # 1/sqrt(400) = 0.05.
    assert abs(np.mean(harmonic / np.abs(harmonic))) < 0.2
    # A day's mean is that of the option: 480000 draws, standard error 0.0007.
    assert drawn.mean() == pytest.approx(0.5, abs=0.004)


def test_diurnal_is_clipped():
    drawn = states(fleet({**DIURNAL, "mean": 1.0, "amplitude": 1.0}, 400), 24 * 10)
    # Half of the time 1 + sin > 1; else its mean is 1 - 2/pi: 1 - 1/pi = 0.682; 96000 draws, standard error 0.0015.
    assert drawn.mean() == pytest.approx(1.0 - 1.0 / np.pi, abs=0.008)


@pytest.mark.parametrize("availability", [MARKOV, RESTLESS])
def test_markov_is_stationary_from_the_start(availability):
    on, off = availability["mean_on"], availability["mean_off"]
    drawn = states(fleet(availability, 4000), 30)
    # Standard error of one slot at most 0.5/sqrt(4000) = 0.008; 5 of them.
    for slot in (0, 1, 29):
        assert drawn[slot].mean() == pytest.approx(on / (on + off), abs=0.04)
    before, after = drawn[:-1], drawn[1:]
    # Some 40000 slots or more of either kind: standard error at most 0.0025.
    assert (before & ~after).sum() / before.sum() == pytest.approx(1.0 / on, abs=0.0125)
    assert (~before & after).sum() / (~before).sum() == pytest.approx(1.0 / off, abs=0.0125)


@pytest.mark.parametrize("availability", [MARKOV, RESTLESS])
def test_markov_goes_forward_as_the_chain_does(availability):
    # The plain twin: from the stationary state on, one slot after the other.
    on, off, count = availability["mean_on"], availability["mean_off"], 50
    drawn = [
        Streams(0).uniform("devices/availability", torch.arange(count), turn=slot, dtype=torch.float64).numpy()
        for slot in range(40)
    ]
    state = drawn[0] < on / (on + off)
    made = fleet(availability, count)
    for slot in range(40):
        if slot:
            state = drawn[slot] < np.where(state, 1.0 - 1.0 / on, 1.0 / off)
        assert fleet(availability, count).available(slot * SECOND).tolist() == state.tolist()
        assert made.available(slot * SECOND).tolist() == state.tolist()


def intervals(tmp_path, population=3, text="0,1,3\n1,0,2\n0,2,5\n0,7,8\n2,3,4\n", **options):
    (tmp_path / "seen.csv").write_text("client,start,end\n" + text)
    return fleet({"kind": "trace", "file": "seen.csv"} | options, population, data_dir=tmp_path)


# Client 0 in [1, 5) and [7, 8), client 1 in [0, 2), client 2 in [3, 4).
PRESENT = {0: [1], 1: [0, 1], 2: [0], 3: [0, 2], 4: [0], 5: [], 6: [], 7: [0], 8: [], 9: []}


def test_intervals(tmp_path):
    made = intervals(tmp_path)
    for second in [*PRESENT, *reversed(PRESENT), 0, 7, 2]:
        for now in (second * SECOND, (second + 1) * SECOND - 1):
            assert np.flatnonzero(made.available(now)).tolist() == PRESENT[second]
    assert [made.wakes(ticks(second)) for second in (0.0, 0.5, 3.5, 4.0, 5.0)] == [
        ticks(second) for second in (1.0, 1.0, 4.0, 5.0, 7.0)
    ]
    assert made.wakes(8 * SECOND) is None


def test_intervals_repeat(tmp_path):
    made = intervals(tmp_path, repeat=10.0)
    for second in (23, 8, 11, 9, 37, 20):
        assert np.flatnonzero(made.available(second * SECOND)).tolist() == PRESENT[second % 10]
    # After the last end, the first begin of the next time; client 1 begins at 0.
    assert made.wakes(28 * SECOND) == 30 * SECOND
    assert made.wakes(30 * SECOND) == 31 * SECOND


def test_an_interval_may_end_where_the_trace_repeats(tmp_path):
    made = intervals(tmp_path, 1, "0,2,4\n", repeat=4.0)
    assert [bool(made.available(second * SECOND)[0]) for second in range(8)] == [False, False, True, True] * 2
    assert [made.wakes(second * SECOND) for second in (1, 3, 4)] == [2 * SECOND, 4 * SECOND, 6 * SECOND]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("0,1,1\n", "row 1: end must be after start"),
        ("0,2,3\n0,2,1\n", "row 2: end must be after start"),
        ("0,-1,1\n", "row 1: start must not be negative"),
        ("0,1,12\n", r"row 1: end must be at most 10\.0, where the trace repeats"),
        ("0,1,nan\n", "row 1: end must be a number of seconds"),
        ("0,x,1\n", "row 1: start is 'x', which is no number"),
        ("1,0,1\n", "row 1: there is no such client"),
        ("", "client 0 has no row"),
    ],
)
def test_intervals_that_cannot_be_used(tmp_path, text, fault):
    with pytest.raises(InputError, match=rf"^devices\.availability\.file = .*: {fault}"):
        intervals(tmp_path, 1, text, repeat=10.0)


@pytest.mark.parametrize(
    ("availability", "message"),
    [
        (
            "never",
            r"^availability\.kind = never: not one of the installed availabilities: always, bernoulli, ",
        ),
        ({**BERNOULLI, "probability": 0.0}, r"^availability\.probability = 0"),
        ({**BERNOULLI, "period": 0.0}, r"^availability\.period = 0"),
        ({**DIURNAL, "mean": 0.0}, r"^availability\.mean = 0"),
        ({**DIURNAL, "period": 13.0}, r"^availability\.period = 13.0: must be at most half of the day"),
        ({**MARKOV, "period": 4.0}, r"^availability\.period = 4.0: must be at most mean_on and mean_off"),
        ({"kind": "trace", "file": "a.xls"}, r"^availability\.file = a\.xls: "),
        ({"kind": "trace", "file": "a.csv", "repeat": 0.0}, r"^availability\.repeat = 0"),
    ],
)
def test_options_that_cannot_be_used(availability, message):
    with pytest.raises(InputError, match=message):
        Devices(availability=availability)
