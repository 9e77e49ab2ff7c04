"""Devices of all clients: how long an order takes, and whether the client lives to see its end.

duration = seconds_i * steps (or 1) * jitter + bytes_down/down_i + bytes_up/up_i, in whole ticks, at least one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedsim.core.clock import SECOND, ticks
from fedsim.core.errors import InputError
from fedsim.core.options import LONGEST, PositiveFloat, Seconds, options, table_of
from fedsim.core.philox import MASK
from fedsim.core.plugins import HasPlugins, hold_returned, kind_of
from fedsim.core.streams import Streams
from fedsim.devices.availability import Always, Presence
from fedsim.devices.census import Census, Spread
from fedsim.devices.compute import Pace

Ticks = NDArray[np.int64]
Numbers = NDArray[np.float64]

LAST = 2**62
"""Ticks, 146 years: what would take longer takes that."""


@options
class Bandwidth:
    """A client's link: up and down, both times the client's factor exp(sigma z_i), z_i standard normal.

    Who is slow to send is slow to receive.
    """

    up: PositiveFloat
    """Bytes a second from a client, the median."""
    down: PositiveFloat
    """Bytes a second to a client, the median."""
    sigma: Spread = 0.0
    """Standard deviation of the factors' logarithms; 0: all links are alike."""


@options
class Failure:
    """Clients fail at work, after a time that is exponential, from the start of each order.

    Being memoryless, that is the time from any other moment, too.
    """

    mean_seconds: Seconds
    """The mean of that time, in virtual seconds."""
    repair_seconds: Annotated[float, Field(ge=0, le=LONGEST)] | None = None
    """Virtual seconds after which a failed client is free again. Not given: it is lost for good."""


@options
class Devices(HasPlugins):
    """The machines of the clients; by default each takes one second an order, always."""

    parts: ClassVar[Mapping[str, str]] = {"compute": "speeds", "availability": "availabilities"}

    compute: Any = "fixed"
    """Virtual seconds that each client takes."""
    per: Literal["order", "step"] = "order"
    """What these seconds are for: an order, or one local step. Per order, to report a loss takes as long as to train;
    per step, a third of a pass.
    """
    overhead: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """What an order takes beside its local steps, in the time of so many, where seconds are per step."""
    jitter: Spread = 0.0
    """sigma of a log-normal factor with mean 1 on the time to compute, drawn for each order; 0: none."""
    bandwidth: Annotated[Bandwidth, table_of(Bandwidth)] | None = None
    """How long it takes to send and to receive. Not given: no time."""
    availability: Any = "always"
    """When a client can start; work that has begun is finished."""
    failure: Annotated[Failure, table_of(Failure)] | None = None
    """How clients fail. Not given: nobody does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overhead and self.per == "order":
            raise InputError("overhead", self.overhead, 'an order takes its seconds as it is; set per = "step"')

    @property
    def steady(self) -> bool:
        """Whether clients can work all the time: nobody sleeps or fails."""
        return isinstance(self.made["availability"], Always) and self.failure is None

    def start(self, census: Census, streams: Streams, data_dir: Path | None = None) -> Fleet:
        """Give N clients their devices, by named draws. data_dir: where traces are looked for first.

        Raises InputError, naming the option from `devices` on, when the clients or a trace do not go with it.
        """
        return Fleet(self, census, streams, data_dir)


class Fleet:
    """The devices of N clients. What it answers depends on its options and on what is asked, not on what was.

    population: N. repair: ticks after which a failed client is free again; None: never. counts_steps: whether the
    number of local steps makes a difference.
    """

    def __init__(self, devices: Devices, census: Census, streams: Streams, data_dir: Path | None) -> None:
        self.population = len(census.sizes)
        repair = None if devices.failure is None else devices.failure.repair_seconds
        self.repair: int | None = None if repair is None else ticks(repair)
        self.counts_steps = devices.per == "step"
        self._devices, self._streams = devices, streams
        self._pace: Pace = devices.made["compute"].start(census, streams, data_dir)
        hold_returned("devices.compute", "speeds", devices.made["compute"], "start", self._pace, Pace)
        _hold_pace(devices.made["compute"], self._pace, self.population)
        self._presence: Presence | None = devices.made["availability"].start(self.population, streams, data_dir)
        if not all(
            callable(getattr(self._presence, name, None)) for name in ("at", "wakes") if self._presence is not None
        ):
            raise self._absent(f"start returns a {type(self._presence).__name__}, without at and wakes")
        self._links = self._bandwidths()
        once = bool((self._pace.count == 1).all())
        self._declares = once and devices.jitter == 0
        # What a single client at a time is asked for in asynchronous runs, ready to be looked up.
        plain = self._declares and self._links is None and devices.per == "order"
        self._ready: Ticks | None = _whole(self._pace.values) if plain else None

    def durations(
        self, clients: NDArray[np.int64], work: Numbers, bytes_down: int | Numbers, bytes_up: int | Numbers, turn: int
    ) -> Ticks:
        """Ticks that orders take, int64 [k], at least 1.

        clients: int64 [k], at least one. work: local steps, float64 [k], which count where seconds are per step.
        bytes_down: of an order, one number or [k]. bytes_up: of a reply, likewise. turn: of the orders;
        names the draws and picks the row of a trace.
        """
        if self._ready is not None:
            return self._ready[clients]
        pace, jitter = self._pace, self._devices.jitter
        taken = pace.values[pace.first[clients] + turn % pace.count[clients]]
        if self._devices.per == "step":
            taken *= work + self._devices.overhead
        if jitter > 0:
            drawn = self._draw("normal", "devices/jitter", clients, turn)
            taken *= np.exp(jitter * (drawn - 0.5 * jitter))
        if self._links is not None:
            down, up = self._links
            taken += bytes_down / down[clients] + bytes_up / up[clients]
        return _whole(taken)

    def crossing(self, clients: NDArray[np.int64], bytes_down: NDArray[np.int64], bytes_up: NDArray[np.int64]) -> int:
        """Ticks until the slowest of these clients, int64 [k], has got and sent so many bytes, int64 [k] each."""
        if self._links is None or not len(clients):
            return 0
        down, up = self._links
        return int(np.rint((bytes_down / down[clients] + bytes_up / up[clients]).max() * SECOND))

    def declared(self, work: Numbers, bytes_down: int | Numbers, bytes_up: int | Numbers) -> Ticks | None:
        """Ticks that an order would take each of the clients, int64 [N]; None when that differs from order to order.

        work: local steps, float64 [N].
        """
        if not self._declares:
            return None
        return self.durations(np.arange(self.population), work, bytes_down, bytes_up, 0)

    def available(self, now: int) -> NDArray[np.bool_] | None:
        """Who could start at a tick: bool [N], not to be written to; None: everybody, always."""
        if self._presence is None:
            return None
        free: Any = self._presence.at(now)
        if not isinstance(free, np.ndarray) or free.dtype != np.bool_ or free.shape != (self.population,):
            found = f"{free.dtype} {list(free.shape)}" if isinstance(free, np.ndarray) else f"a {type(free).__name__}"
            raise self._absent(f"at({now}) is {found}, not bool [{self.population}]")
        mask: NDArray[np.bool_] = free
        return mask

    def wakes(self, now: int) -> int | None:
        """The next tick > now at which that may change; None: never again."""
        if self._presence is None:
            return None
        wakes: Any = self._presence.wakes(now)
        if wakes is not None and not (isinstance(wakes, int | np.integer) and wakes > now):
            raise self._absent(f"wakes({now}) is {wakes!r}, not a later tick or None")
        return None if wakes is None else int(wakes)

    def failures(self, clients: NDArray[np.int64], durations: Ticks, turn: int) -> Ticks | None:
        """Ticks from the start of an order until the client fails, int64 [k], at least 1; -1 where it ends before.

        clients: int64 [k], at least one. durations: of their orders, int64 [k]. turn: as for them. None: nobody ever
        fails.
        """
        failure = self._devices.failure
        if failure is None:
            return None
        drawn = self._draw("uniform", "devices/failure", clients, turn)
        fails = _whole(-failure.mean_seconds * np.log1p(-drawn))
        return np.where(fails < durations, fails, -1)

    def _absent(self, fault: str) -> InputError:
        kind = kind_of("availabilities", self._devices.made["availability"])
        return InputError("devices.availability.kind", kind, fault)

    def _bandwidths(self) -> tuple[Numbers, Numbers] | None:
        """Bytes a second of each client, down and up, [N] both."""
        bandwidth = self._devices.bandwidth
        if bandwidth is None:
            return None
        drawn = self._draw("normal", "devices/bandwidth", np.arange(self.population), 0)
        factor = np.exp(bandwidth.sigma * drawn)
        return bandwidth.down * factor, bandwidth.up * factor

    def _draw(self, law: Literal["normal", "uniform"], purpose: str, clients: NDArray[np.int64], turn: int) -> Numbers:
        draw = self._streams.normal if law == "normal" else self._streams.uniform
        # A turn may be past 2^32, the range of one word of the counter. The ids are copied: they may be read-only.
        ids = torch.tensor(clients)
        return draw(purpose, ids, turn=turn & MASK, step=turn >> 32, dtype=torch.float64).numpy()


def _hold_pace(compute: object, pace: Pace, population: int) -> None:
    """Refuse (InputError) numbers that are no times, or that not every client has."""
    values, first, count = cast("Any", (pace.values, pace.first, pace.count))
    if not all(isinstance(array, np.ndarray) and array.ndim == 1 for array in (values, first, count)):
        fault = "start makes a Pace of something else than NumPy arrays of one dimension"
    elif len(first) != population or len(count) != population:
        fault = f"start makes a Pace of {len(first)} clients, and there are {population}"
    elif not np.isfinite(values).all() or (values < 0).any():
        wrong = values[~(np.isfinite(values) & (values >= 0))][0]
        fault = f"start makes a Pace in which somebody takes {wrong:g} seconds; give numbers from 0 on"
    elif (count < 1).any() or (first < 0).any() or (first + count > len(values)).any():
        fault = f"start makes a Pace whose clients have other numbers than its {len(values)}"
    else:
        return
    raise InputError("devices.compute.kind", kind_of("speeds", compute), fault)


def _whole(seconds: Numbers) -> Ticks:
    """Whole ticks nearest to so many seconds, at least one."""
    # Half the time of np.clip, which matters for one client at a time.
    return np.minimum(np.maximum(np.rint(seconds * SECOND), 1), LAST).astype(np.int64)
