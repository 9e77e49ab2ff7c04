"""How long clients compute: seconds of each, fixed for the run, by rule, by a named draw, or from a file.

These are the plug-ins of the group `fedsim.speeds`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedsim.coding.stragglers import gilbert_elliott
from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, Seconds, options
from fedsim.core.streams import SERVER, Streams
from fedsim.devices.census import Census, Spread
from fedsim.devices.traces import File, read_trace

DRAW = "devices/compute"
TABLE = "devices.compute"


@dataclass(frozen=True, eq=False)
class Pace:
    """Seconds that N clients take: client i has `count[i]` numbers, which it takes in turn, from `first[i]` on.

    values: float64 [n], positive. first, count: int64 [N].
    """

    values: NDArray[np.float64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def constant(cls, seconds: NDArray[np.float64]) -> Pace:
        """One number a client: seconds, float64 [N]."""
        return cls(seconds, np.arange(len(seconds)), np.ones(len(seconds), dtype=np.int64))


class Compute(Protocol):
    """What a plug-in of the group `speeds` offers: an `@options` class."""

    def start(self, census: Census, streams: Streams, data_dir: Path | None) -> Pace:
        """The seconds of N clients, from what is known of them and from named draws.

        data_dir: where files are looked for first. InputError: the options do not go with these clients.
        """
        ...


@options
class Fixed:
    """tau_i = seconds (1 - spread/100 * i/(N - 1)), and `seconds` for a single client. FedFix's setting F-X.

    i is the client's rank from 0, so the first is the slowest. Fraboni et al. 2023, section on experiments.
    """

    seconds: Seconds = 1.0
    """Virtual seconds that the slowest client takes."""
    spread: Annotated[float, Field(ge=0, lt=100)] = 0.0
    """By how many percent of that the fastest client takes less."""
    by: Literal["client", "size", "label"] = "client"
    """What clients are ranked by: their ids; their number of examples, ascending (size); or the mean label of their
    examples, ascending, those without any last (label). Ties by id.
    """

    def start(self, census: Census, streams: Streams, data_dir: Path | None) -> Pace:  # noqa: ARG002
        """Rank the clients; InputError: by label where there are none."""
        population = len(census.sizes)
        ranked_by: dict[str, Callable[[], NDArray[Any] | None]] = {
            "client": partial(np.arange, population),
            "size": census.sizes.numpy,
            "label": census.labels,
        }
        keys = ranked_by[self.by]()
        if keys is None:
            raise InputError(f"{TABLE}.by", self.by, "examples have no labels, or several each; take client or size")
        rank = np.empty(population)
        rank[np.argsort(keys, kind="stable")] = np.arange(population)
        return Pace.constant(self.seconds * (1.0 - self.spread / 100.0 * (rank / max(population - 1, 1))))


@options
class Uniform:
    """tau_i uniform in [low, high) seconds."""

    low: Seconds
    """The shortest time, in virtual seconds."""
    high: Seconds
    """The longest time, in virtual seconds, itself not reached; at least low."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise InputError("high", self.high, f"must be at least low, which is {self.low}")

    def start(self, census: Census, streams: Streams, data_dir: Path | None) -> Pace:  # noqa: ARG002
        """Draw each client's seconds."""
        drawn = streams.uniform(DRAW, torch.arange(len(census.sizes)), dtype=torch.float64).numpy()
        return Pace.constant(self.low + (self.high - self.low) * drawn)


@options
class LogNormal:
    """tau_i = median exp(sigma z_i) seconds, z_i standard normal."""

    median: Seconds
    """Median of the clients' virtual seconds."""
    sigma: Spread
    """Standard deviation of their logarithms; 0: all clients are alike."""

    def start(self, census: Census, streams: Streams, data_dir: Path | None) -> Pace:  # noqa: ARG002
        """Draw each client's seconds."""
        drawn = streams.normal(DRAW, torch.arange(len(census.sizes)), dtype=torch.float64).numpy()
        return Pace.constant(self.median * np.exp(self.sigma * drawn))


@options
class Zipf:
    """tau_i = seconds r_i^exponent, r_i = 1 .. N a random order: speeds follow Zipf's law."""

    seconds: Seconds
    """Virtual seconds that the fastest client takes, the one of rank 1."""
    exponent: Annotated[float, Field(ge=0, le=10)]
    """How much slower later ranks are; 0: all clients are alike."""

    def start(self, census: Census, streams: Streams, data_dir: Path | None) -> Pace:  # noqa: ARG002
        """Draw the order of the clients."""
        order = streams.permutation(DRAW, torch.tensor([SERVER]), len(census.sizes))[0].numpy()
        return Pace.constant(self.seconds * (order + 1.0) ** self.exponent)


@options
class Bursty:
    """tau_i = seconds, times `slowdown` where client i is slow, by a chain of its own over rounds (Gilbert-Elliott).

    In each round a client becomes slow with probability `enter`, and one that is slow ceases to be so with `leave`.
    Rounds are counted as in a `trace`.
    """

    seconds: Seconds = 1.0
    """Virtual seconds of a client that is not slow."""
    slowdown: Annotated[float, Field(ge=1, le=1e6)] = 5.0
    """How many times that a slow one takes."""
    enter: Annotated[float, Field(gt=0, le=1)] = 0.02
    """How likely it is to become slow, in each round."""
    leave: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How likely a slow client is to be so no longer, in each round."""
    rounds: PositiveInt = 1000
    """After so many rounds the same ones begin anew."""

    def slow(self, population: int, streams: Streams) -> NDArray[np.bool_]:
        """Who is slow in which round, bool [rounds, N]."""
        clients = torch.arange(population)
        drawn = streams.uniform(DRAW, clients, (self.rounds + 1,), dtype=torch.float64)
        return gilbert_elliott(drawn.numpy().T, self.enter, self.leave)

    def start(self, census: Census, streams: Streams, data_dir: Path | None) -> Pace:  # noqa: ARG002
        """Draw each client's rounds."""
        population = len(census.sizes)
        seconds = np.where(self.slow(population, streams).T, self.slowdown * self.seconds, self.seconds)
        count = np.full(population, self.rounds)
        return Pace(seconds.reshape(-1), np.arange(population) * self.rounds, count)


@options
class SpeedTrace:
    """tau_i from a file with the columns client and seconds; of several rows, round t takes row t modulo their number.

    So a client that sits out rounds skips rows. Where clients restart at once, t counts the server's orders.
    """

    file: File
    """Path of a CSV or Parquet file, absolute, or below the data folder or else the current one."""

    def start(self, census: Census, streams: Streams, data_dir: Path | None) -> Pace:  # noqa: ARG002
        """Read the file; InputError: it is not such a table."""
        population = len(census.sizes)
        records = read_trace(self.file, ["seconds"], population, f"{TABLE}.file", data_dir)
        (seconds,) = records.columns
        records.require(seconds > 0, "seconds must be above 0; correct it or remove the row")
        order = np.argsort(records.clients, kind="stable")
        count = np.bincount(records.clients, minlength=population)
        return Pace(seconds[order], np.cumsum(count) - count, count)
