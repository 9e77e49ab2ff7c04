"""Faults on demand: orders that go wrong on purpose, per client and seeded.

At most one fault befalls an order, and which one is settled when the order is sent. The kinds that a client can have
share the unit interval by their rates, in the order of `Faults`, and one uniform number, named by the client and the
turn of the order, falls into the part of a kind or, above the sum of the rates, into none. So faults depend on neither
the executor, the size of chunks nor who answers first. They befall all orders of an algorithm, of whichever window of a
round; requests of a selector for clients' losses go through. A client whose machine fails during an order (see
`fedsim.devices`) has no other fault in it.

To the server all is as if it were real: who breaks off is a broken connection, an update that is not finite or not of
the shape that was asked for is left out, one that lies is taken for what it says, and a late one may be too late. A
client whose reply is lost or changed on its way has done its work, and what it remembers has moved on; one that did
nothing or broke off remembers what it did before. What transforms remember of what has crossed, such as feedback of
compressors, moves on with the replies alone that the server takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from torch import Tensor

from fedsim.core.clock import ticks
from fedsim.core.errors import InputError
from fedsim.core.options import LONGEST, NonNegativeInt, Seconds, Share, options
from fedsim.core.philox import MASK
from fedsim.core.streams import Streams

Payload = Mapping[str, Tensor]
"""Tensors of one client's reply, by name."""
Clients = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, strict=False)]
Pause = Annotated[float, Field(ge=0, le=LONGEST)]
SLACK = 1e-9
"""By how much rates that are meant to add up to 1 may miss it in floating point."""


@options
class Fault:
    """What all kinds have in common; a bare number stands for the rate."""

    answers: ClassVar[bool] = True
    """Whether a reply arrives."""
    works: ClassVar[bool] = True
    """Whether the client does its work to the end."""
    crashes: ClassVar[bool] = False
    """Whether its machine fails."""

    rate: Share
    """The probability with which it befalls an order to a client that can have it."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of all clients, drawn by the run's seed, that can have it; at least one client."""
    clients: Clients | None = None
    """The ids of those that can, instead of a share. Not given: the share decides."""

    def __post_init__(self) -> None:
        if self.clients is not None and self.share != 1.0:
            raise InputError("share", self.share, "clients says who can have it; leave one of them out")

    @property
    def repair(self) -> int:
        """Ticks after which a client is free again that has not answered."""
        return 0

    @property
    def delay(self) -> int:
        """Ticks that a reply takes longer."""
        return 0

    @property
    def again(self) -> int | None:
        """Ticks after a reply at which a copy of it arrives; None: no copy does."""
        return None

    def told(self, payload: Payload) -> Payload:
        """What arrives in place of a payload; the very same object where nothing is changed."""
        return payload


@options
class DropBefore(Fault):
    """The client gets the order and does nothing; the server notices when the reply would have been due."""

    answers: ClassVar[bool] = False
    works: ClassVar[bool] = False


@options
class DropAfter(Fault):
    """The client does its work, and its reply is lost on the way; the server notices when it would have been due."""

    answers: ClassVar[bool] = False


@options
class Crash(Fault):
    """The client breaks off after a uniform share of its time."""

    answers: ClassVar[bool] = False
    works: ClassVar[bool] = False
    crashes: ClassVar[bool] = True

    repair_seconds: Pause = 0.0
    """Virtual seconds after which the client is free again."""

    @property
    def repair(self) -> int:
        """See `Fault`."""
        return ticks(self.repair_seconds)


@options
class Late(Fault):
    """The reply arrives later than it would."""

    seconds: Seconds = 10.0
    """By how many virtual seconds."""

    @property
    def delay(self) -> int:
        """See `Fault`."""
        return ticks(self.seconds)


@options
class Duplicate(Fault):
    """The reply arrives twice. The copy is known by its order, counted and dropped."""

    seconds: Pause = 0.0
    """Virtual seconds between the two."""

    @property
    def again(self) -> int:
        """See `Fault`."""
        return ticks(self.seconds)


@options
class NonFinite(Fault):
    """The first number of each floating tensor of the reply is not one.

    A reply of integers alone cannot have this fault.
    """

    value: Literal["nan", "inf"] = "nan"
    """What stands in its place."""

    def told(self, payload: Payload) -> Payload:
        """See `Fault`."""
        if not any(rows.is_floating_point() and rows.numel() for rows in payload.values()):
            return payload
        found = {name: rows.clone(memory_format=torch.contiguous_format) for name, rows in payload.items()}
        for rows in found.values():
            if rows.is_floating_point():
                rows.view(-1)[:1] = float(self.value)
        return found


@options
class WrongShape(Fault):
    """Each tensor of the reply is one number longer than the order has asked for."""

    def told(self, payload: Payload) -> Payload:
        """See `Fault`."""
        return {name: torch.cat((rows.flatten(), rows.new_zeros(1))) for name, rows in payload.items()}


@options
class Scale(Fault):
    """The reply is times factor: each floating tensor, or, of integers alone, all of them, rounded and clipped."""

    factor: float = 10.0
    """What the reply is multiplied by."""

    def told(self, payload: Payload) -> Payload:
        """See `Fault`."""
        return _times(payload, self.factor)


@options
class SignFlip(Fault):
    """The reply is times -1: each floating tensor, or, of integers alone, all of them, clipped to their type."""

    def told(self, payload: Payload) -> Payload:
        """See `Fault`."""
        return _times(payload, -1.0)


def _times(payload: Payload, factor: float) -> Payload:
    """The payload with floating tensors times a factor.

    Integers beside them are places or names; where there is nothing else they are codes of numbers.
    """
    floating = any(rows.is_floating_point() for rows in payload.values())
    found = dict(payload)
    for name, rows in payload.items():
        if rows.is_floating_point():
            found[name] = rows * factor
        elif not floating and rows.dtype != torch.bool:
            limits, exact = torch.iinfo(rows.dtype), (rows.double() * factor).round()
            # The largest of 64 bits is no double, so that what reaches it cannot be clipped as one.
            over, under = exact >= limits.max, exact <= limits.min
            within = torch.where(over | under, 0.0, exact).to(rows.dtype)
            found[name] = within.masked_fill(over, limits.max).masked_fill(under, limits.min)
    return found


def _of(made: type[Fault]) -> BeforeValidator:
    """A field that takes a table of options, or a bare rate."""

    def parse(given: object) -> object:
        if isinstance(given, Mapping):
            return made(**given)
        if isinstance(given, int | float) and not isinstance(given, bool):
            return made(rate=given)
        return given

    return BeforeValidator(parse, json_schema_input_type=Share | made)


@options
class Faults:
    """The kinds of faults of a run, each with its rate or a table; without one nothing goes wrong on purpose.

    A client's rates add up to 1 at most.
    """

    drop_before: Annotated[DropBefore, _of(DropBefore)] | None = None
    """The order is lost: the client does nothing."""
    drop_after: Annotated[DropAfter, _of(DropAfter)] | None = None
    """The reply is lost; the client has done its work."""
    crash: Annotated[Crash, _of(Crash)] | None = None
    """The client breaks off."""
    late: Annotated[Late, _of(Late)] | None = None
    """The reply is late."""
    duplicate: Annotated[Duplicate, _of(Duplicate)] | None = None
    """The reply arrives twice."""
    non_finite: Annotated[NonFinite, _of(NonFinite)] | None = None
    """The reply has numbers that are none."""
    wrong_shape: Annotated[WrongShape, _of(WrongShape)] | None = None
    """The reply has another shape than was asked for."""
    sign_flip: Annotated[SignFlip, _of(SignFlip)] | None = None
    """The reply is times -1."""
    scale: Annotated[Scale, _of(Scale)] | None = None
    """The reply is times a factor."""

    def __post_init__(self) -> None:
        everybody, own = 0.0, dict[int, float]()
        for fault in self.kinds.values():
            if fault.clients is None:
                everybody += fault.rate
            for client in set(fault.clients or ()):
                own[client] = own.get(client, 0.0) + fault.rate
        most = everybody + max(own.values(), default=0.0)
        if most > 1.0 + SLACK:
            kind, fault = list(self.kinds.items())[-1]
            raise InputError(f"{kind}.rate", fault.rate, f"a client's rates add up to {most:g}; lower them to 1 in all")

    @property
    def kinds(self) -> dict[str, Fault]:
        """Those that are given, by name."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {kind: fault for kind, fault in given.items() if fault is not None}

    def start(self, population: int, streams: Streams) -> Injection | None:
        """The faults of N clients, by named draws; None where there are none. InputError: there is no such client."""
        return Injection(self.kinds, population, streams) if self.kinds else None


class Fate(NamedTuple):
    """What becomes of an order.

    fault: the kind that befalls it, None if none does. delay: ticks that the reply takes longer. ends: ticks until the
    order ends without a reply, -1 where one comes.
    """

    fault: str | None = None
    delay: int = 0
    ends: int = -1


WELL = Fate()


class Injection:
    """The faults of N clients. What it answers depends on its options and on what is asked, not on what was.

    kinds: the faults by name.
    """

    def __init__(self, kinds: Mapping[str, Fault], population: int, streams: Streams) -> None:
        self.kinds, self._streams = dict(kinds), streams
        self._names = list(kinds)
        self._rates = np.array([fault.rate for fault in kinds.values()])[:, None]
        self._able = np.stack([self._who(kind, population) for kind in kinds])

    def fates(self, clients: NDArray[np.int64], durations: NDArray[np.int64], turn: int) -> list[Fate]:
        """What becomes of an order to each of these clients.

        clients: int64 [k], at least one. durations: ticks that it takes them, int64 [k]. turn: of the orders; names the
        draws.
        """
        limits = (self._rates * self._able[:, clients]).cumsum(axis=0)
        struck = (self._draw("faults", clients, turn) >= limits).sum(axis=0).tolist()
        kinds = [*self._names, None]
        crashes = any(fault.crashes for fault in self.kinds.values())
        shares = self._draw("faults/moment", clients, turn).tolist() if crashes else [1.0] * len(struck)
        return [
            self._fate(kinds[place], duration, share)
            for place, duration, share in zip(struck, durations.tolist(), shares, strict=True)
        ]

    def _fate(self, kind: str | None, duration: int, share: float) -> Fate:
        if kind is None:
            return WELL
        fault = self.kinds[kind]
        if fault.answers:
            return Fate(kind, delay=fault.delay)
        return Fate(kind, ends=max(1, int(share * duration)) if fault.crashes else duration)

    def _who(self, kind: str, population: int) -> NDArray[np.bool_]:
        """Who can have a fault: bool [N]."""
        fault, able = self.kinds[kind], np.zeros(population, dtype=np.bool_)
        if fault.clients is None:
            drawn = self._draw(f"faults/who/{kind}", np.arange(population), 0)
            able[drawn.argsort(kind="stable")[: max(1, round(fault.share * population))]] = True
            return able
        if max(fault.clients) >= population:
            raise InputError(f"{kind}.clients", max(fault.clients), f"clients are numbered 0 to {population - 1}")
        able[list(fault.clients)] = True
        return able

    def _draw(self, purpose: str, clients: NDArray[np.int64], turn: int) -> NDArray[np.float64]:
        # A turn may be past 2^32, the range of one word of the counter. The ids are copied: they may be read-only.
        drawn = self._streams.uniform(
            purpose, torch.tensor(clients), turn=turn & MASK, step=turn >> 32, dtype=torch.float64
        )
        found: NDArray[Any] = drawn.numpy()
        return found
