"""When clients can start to work. It gates the start only: work that has begun is finished.

These are the plug-ins of the group `fedsim.availabilities`. Random kinds draw anew in each slot, [s period,
(s + 1) period), and are constant in it. The state of any slot can be asked for in any order; what is kept of the last
one only saves time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedsim.core.clock import SECOND, ticks
from fedsim.core.errors import InputError
from fedsim.core.options import Seconds, options
from fedsim.core.philox import MASK
from fedsim.core.streams import Streams
from fedsim.devices.traces import File, read_trace

DRAW = "devices/availability"

Flags = NDArray[np.bool_]


class Presence(Protocol):
    """Who of N clients is available when."""

    def at(self, now: int) -> Flags:
        """Who is available at a tick: bool [N], not to be written to."""
        ...

    def wakes(self, now: int) -> int | None:
        """The next tick > now at which that may change; None: never again."""
        ...


class Availability(Protocol):
    """What a plug-in of the group `availabilities` offers: an `@options` class."""

    def start(self, population: int, streams: Streams, data_dir: Path | None) -> Presence | None:
        """Who of so many clients is available when; None: everybody, always. data_dir: see `Compute.start`."""
        ...


class Slots(ABC):
    """Availability that is drawn for each period of so many ticks. population: N."""

    def __init__(self, population: int, streams: Streams, period: float) -> None:
        self.population, self.streams, self.period = population, streams, ticks(period)
        self.slot = -1
        self.state: Flags = np.zeros(population, dtype=bool)

    def at(self, now: int) -> Flags:
        """Who is available at a tick, bool [N]."""
        slot = now // self.period
        if slot != self.slot:
            state = self.draw(slot)
            state.setflags(write=False)
            self.slot, self.state = slot, state
        return self.state

    def wakes(self, now: int) -> int:
        """The beginning of the next slot."""
        return (now // self.period + 1) * self.period

    @abstractmethod
    def draw(self, slot: int) -> Flags:
        """Who is available in a slot, bool [N]; `slot` and `state` of this object are those of the last question."""

    def uniform(self, clients: NDArray[np.int64], slot: int) -> NDArray[np.float64]:
        """A number in [0, 1) for each of these clients, [k], in a slot."""
        # A slot may be past 2^32, the range of one word of the counter.
        ids = torch.from_numpy(clients)
        return self.streams.uniform(DRAW, ids, turn=slot & MASK, step=slot >> 32, dtype=torch.float64).numpy()


class _Coins(Slots):
    def __init__(self, population: int, streams: Streams, options: Bernoulli) -> None:
        super().__init__(population, streams, options.period)
        self._probability = options.probability

    def draw(self, slot: int) -> Flags:
        return self.uniform(np.arange(self.population), slot) < self._probability


class _Waves(Slots):
    def __init__(self, population: int, streams: Streams, options: Diurnal) -> None:
        super().__init__(population, streams, options.period)
        self._options, self._day = options, ticks(options.day)
        self._phases = streams.uniform(f"{DRAW}/phase", torch.arange(population), dtype=torch.float64).numpy()

    def draw(self, slot: int) -> Flags:
        # The remainder is taken in whole ticks, so that the last day is as exact as the first.
        turns = slot * self.period % self._day / self._day + self._phases
        probability = self._options.mean + self._options.amplitude * np.sin(2.0 * np.pi * turns)
        return self.uniform(np.arange(self.population), slot) < probability


class _Chains(Slots):
    """The chain's next state is a function of its state and one uniform number u, so that it can be found backwards.

    Below the smaller of P(on | on) and P(on | off) the next state is on, from the larger upwards it is off, whatever
    it was; between the two it is kept, or, if P(on | off) is the larger, changed. So only what was drawn since a
    client's last decisive number matters, and a run that goes on late need not begin at slot 0.
    """

    def __init__(self, population: int, streams: Streams, options: Markov) -> None:
        super().__init__(population, streams, options.period)
        staying, coming = 1.0 - options.period / options.mean_on, options.period / options.mean_off
        self._low, self._high = min(staying, coming), max(staying, coming)
        self._changes = coming > staying
        self._stationary = options.mean_on / (options.mean_on + options.mean_off)

    def draw(self, slot: int) -> Flags:
        state = np.zeros(self.population, dtype=bool)
        known = self.slot if 0 <= self.slot < slot else 0
        open_clients, changed = np.arange(self.population), False
        for number in range(slot, known, -1):
            drawn = self.uniform(open_clients, number)
            decided = (drawn < self._low) | (drawn >= self._high)
            state[open_clients[decided]] = (drawn[decided] < self._low) ^ changed
            open_clients = open_clients[~decided]
            if not len(open_clients):
                return state
            changed ^= self._changes
        remembered = self.slot == known
        before = self.state[open_clients] if remembered else self.uniform(open_clients, 0) < self._stationary
        state[open_clients] = before ^ changed
        return state


class _Intervals:
    """The union of half-open intervals of ticks. clients, begin, end: int64 [n]. repeat: ticks, or None."""

    def __init__(
        self,
        population: int,
        clients: NDArray[np.int64],
        begin: NDArray[np.int64],
        end: NDArray[np.int64],
        repeat: int | None,
    ) -> None:
        times = np.concatenate((begin, end))
        order = np.argsort(times, kind="stable")
        self._times, self._repeat = times[order], repeat
        self._clients = np.concatenate((clients, clients))[order]
        self._changes = np.repeat([1, -1], len(clients))[order]
        # What follows is of the last question: how many events had happened, and each client's open intervals.
        self._happened = 0
        self._open = np.zeros(population, dtype=np.int64)
        self._state: Flags = self._open > 0
        self._state.setflags(write=False)

    def at(self, now: int) -> Flags:
        """Who is available at a tick, bool [N]."""
        happened = int(np.searchsorted(self._times, self._within(now), side="right"))
        if happened != self._happened:
            forward = happened > self._happened
            events = slice(min(happened, self._happened), max(happened, self._happened))
            np.add.at(self._open, self._clients[events], self._changes[events] * (1 if forward else -1))
            self._happened = happened
            self._state = self._open > 0
            self._state.setflags(write=False)
        return self._state

    def wakes(self, now: int) -> int | None:
        """The next begin or end of an interval."""
        within = self._within(now)
        place = int(np.searchsorted(self._times, within, side="right"))
        if place < len(self._times):
            return now - within + int(self._times[place])
        return None if self._repeat is None else now - within + self._repeat + int(self._times[0])

    def _within(self, now: int) -> int:
        return now if self._repeat is None else now % self._repeat


@options
class Always:
    """Every client can start at any time."""

    def start(self, population: int, streams: Streams, data_dir: Path | None) -> None:  # noqa: ARG002
        """Nothing to keep."""
        return


@options
class Bernoulli:
    """Each client is available in each period with this probability, independently."""

    probability: Annotated[float, Field(gt=0, le=1)]
    """Probability that a client is available in a period."""
    period: Seconds
    """Length of a period, in virtual seconds."""

    def start(self, population: int, streams: Streams, data_dir: Path | None) -> Presence:  # noqa: ARG002
        """Keep the last period."""
        return _Coins(population, streams, self)


@options
class Diurnal:
    """Client i is available in a period that begins at t with probability mean + amplitude sin(2 pi (t/day + phase_i)).

    Clipped to [0, 1]; phase_i uniform in [0, 1).
    """

    mean: Annotated[float, Field(gt=0, le=1)]
    """The mean probability."""
    amplitude: Annotated[float, Field(ge=0, le=1)]
    """By how much it rises and falls in a day."""
    day: Seconds = 86400.0
    """Length of a day, in virtual seconds."""
    period: Seconds = 3600.0
    """Length of a period, in virtual seconds; at most half a day, so that nobody is asked only when asleep."""

    def __post_init__(self) -> None:
        if self.period > self.day / 2:
            raise InputError("period", self.period, f"must be at most half of the day, which is {self.day} s")

    def start(self, population: int, streams: Streams, data_dir: Path | None) -> Presence:  # noqa: ARG002
        """Draw the phases."""
        return _Waves(population, streams, self)


@options
class Markov:
    """Each client turns on and off from period to period: P(off | on) = period/mean_on, P(on | off) = period/mean_off.

    So it stays on for mean_on and off for mean_off seconds on average. It starts in its stationary state, on with
    probability mean_on / (mean_on + mean_off).
    """

    mean_on: Seconds
    """How long a client stays on, on average, in virtual seconds."""
    mean_off: Seconds
    """How long it stays off, on average, in virtual seconds."""
    period: Seconds
    """Length of a period, in virtual seconds; at most the smaller of the two means."""

    def __post_init__(self) -> None:
        if self.period > min(self.mean_on, self.mean_off):
            raise InputError("period", self.period, "must be at most mean_on and mean_off; shorten it")

    def start(self, population: int, streams: Streams, data_dir: Path | None) -> Presence:  # noqa: ARG002
        """Keep the last period."""
        return _Chains(population, streams, self)


@options
class PresenceTrace:
    """Each client is available in the intervals [start, end) of a file with the columns client, start and end, seconds.

    Intervals of one client may overlap.
    """

    file: File
    """Path of a CSV or Parquet file, absolute, or below the data folder or else the current one."""
    repeat: Seconds | None = None
    """Virtual seconds after which the trace begins again. Not given: nobody is available after the last end."""

    def start(self, population: int, streams: Streams, data_dir: Path | None) -> Presence:  # noqa: ARG002
        """Read the file; InputError: it is not such a table."""
        records = read_trace(self.file, ["start", "end"], population, "devices.availability.file", data_dir)
        begin, end = (np.rint(column * SECOND).astype(np.int64) for column in records.columns)
        records.require(begin >= 0, "start must not be negative; time begins at 0")
        records.require(end > begin, "end must be after start; correct it or remove the row")
        repeat = None if self.repeat is None else ticks(self.repeat)
        if repeat is not None:
            records.require(end <= repeat, f"end must be at most {self.repeat}, where the trace repeats; cut it there")
        return _Intervals(population, records.clients, begin, end, repeat)
