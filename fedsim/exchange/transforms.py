"""Transforms: what is done to the vectors of a reply, or of an order, before they cross the network.

An experiment lists them, and they apply in that order, each to what the one before has left, and each counts what its
own encoding takes. What client c's vectors become depends on these, on what c remembers and on c's own draws, not on
who else is in the cohort; so a cohort is worked on in blocks of rows, and no transform has to think of its memory.

A transform changes what is sent, rows [C, n], into what is sent in its place, rows [C, m], and says how the receiver
gets from there to [C, n] again. Two numbers of bytes come of that. What a vector takes at most is known before the work
is done, and is what the clock goes by; what it did take is counted, client by client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import BrokenPromiseError, InputError, naming
from fedsim.core.near import name_one
from fedsim.core.options import NonNegativeFloat, PositiveFloat, options
from fedsim.core.plugins import kind_of, refuse_misspelt
from fedsim.core.streams import Index, Streams
from fedsim.exchange.aggregation import halving_sum
from fedsim.exchange.messages import Size, broken, shaped, shown

BLOCK = 2**21
"""Numbers of rows that are worked on at a time."""
PREFIX = "transforms/"
"""How the names begin of what is remembered for transforms."""
LESS = "loses less than it is sent: contract = true, scaled = false, more levels"
"""What is asked of compressors behind feedback."""
Shapes = Mapping[str, tuple[int, ...]]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True)
class Sender:
    """Who sends: C clients, or the server alone.

    clients: int64 [C]. streams, turn: what their draws are named by; turn is one number, or int64 [C]. state: what they
    remember, [C, *shape] by name. within: how the names began of which `state` has the rest.
    """

    clients: Tensor
    streams: Streams
    turn: Index
    state: Mapping[str, Tensor] = field(default_factory=dict)
    within: str = ""

    def __getitem__(self, rows: slice | Tensor) -> Sender:
        turn = self.turn[rows] if isinstance(self.turn, Tensor) else self.turn
        kept = {name: own[rows] for name, own in self.state.items()}
        return replace(self, clients=self.clients[rows], turn=turn, state=kept)

    def of(self, prefix: str) -> Sender:
        """The same, remembering only what has a name that begins so, under the rest of the name."""
        own = {name.removeprefix(prefix): kept for name, kept in self.state.items() if name.startswith(prefix)}
        return replace(self, state=own, within=prefix)


Decode = Callable[[Tensor], Tensor]
"""What a receiver makes of rows, [C, k] to [C, m]."""
Learn = Callable[[Tensor], Mapping[str, Tensor]]
"""What senders remember, [C, *shape] by name, when the receiver has made of their message rows [C, k]."""


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class Vector:
    """One vector of C clients on its way, as one transform hands it to the next.

    rows: [C, m], the numbers that cross, as the receiver will read them; not to be written to. size: what they take.
    sender: whose they are, with the state of this vector that the transform at hand keeps. place: which of the vectors
    that the transform goes over. steps: of the transforms so far, how the receiver takes back what each has done, and
    what the senders learn from what they took back, with how the names of that begin.
    """

    rows: Tensor
    size: Size
    sender: Sender
    place: int = 0
    steps: tuple[tuple[Decode, Learn | None, str], ...] = ()

    def __post_init__(self) -> None:
        rows, senders = cast("Any", self.rows), len(self.sender.clients)
        if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != senders:
            raise BrokenPromiseError(f"{shown(rows)} crosses where {senders} clients send a row each")
        if rows.shape[1] != self.size.numbers:
            raise BrokenPromiseError(f"{rows.shape[1]} numbers cross where {self.size.numbers} are declared")

    def coded(
        self,
        rows: Tensor,
        size: Size | None = None,
        *,
        decode: Decode = _as_it_is,
        learn: Learn | None = None,
        **state: Tensor,
    ) -> Vector:
        """Send other rows [C, k] in place of these; decode: from such rows to [C, m], where they are not that already.

        size: what they take, by default as much as these. state: what the sender is to remember, [C, *shape] by name.
        learn: what it is to remember where that depends on what the transforms after this one leave of the rows: from
        what the receiver has in their place, [C, k].
        """
        step = () if decode is _as_it_is and learn is None else ((decode, learn, self.sender.within),)
        return replace(
            self,
            rows=rows,
            size=self.size if size is None else size,
            sender=replace(self.sender, state={**self.sender.state, **state}) if state else self.sender,
            steps=self.steps + step,
        )

    def received(self) -> tuple[Tensor, dict[str, Tensor]]:
        """What the receiver makes of the rows, [C, n], and what the senders learn from it, by whole names."""
        rows, learnt = self.rows, dict[str, Tensor]()
        for decode, learn, within in reversed(self.steps):
            if learn is not None:
                learnt |= {within + name: kept for name, kept in learn(rows).items()}
            rows = decode(rows)
        return rows, learnt

    def draw(self, law: Literal["normal", "uniform"], name: str, count: int | None = None) -> Tensor:
        """Draw standard normal numbers, or uniform ones in [0, 1), in the type of the rows, and in their shape.

        name: of the draw; the client, the turn and the vector name it, too. count: so many a client instead.
        """
        sender, rows = self.sender, self.rows
        draw = sender.streams.normal if law == "normal" else sender.streams.uniform
        shape = rows.shape[1:] if count is None else (count,)
        return draw(name, sender.clients, shape, turn=sender.turn, step=self.place, dtype=rows.dtype)


@options
class Transform:
    """What is done to some vectors of a message; the others cross as they are."""

    keeps_statistics: ClassVar[bool] = True
    """Whether running statistics of batch normalisation, the last numbers of a model's change, are still some after it.
    """
    shapes: ClassVar[Sequence[tuple[int, ...]]] = ()
    """Of the model's parameters, one after the other in its vector; none where no model is known."""
    feeds_back: ClassVar[bool] = False
    """Whether it remembers what the transforms after it leave out."""
    sparse: ClassVar[bool] = False
    """Whether most numbers arrive as 0, and not the same ones of all clients."""

    summable: ClassVar[bool] = False
    """Whether it only changes numbers, and has no encoding of its own, so that others can sum what it leaves."""

    vectors: Names | None = None
    """Which vectors of a message it goes over. Not given: the change of a reply, the model of an order, if alone."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Transform)

    @property
    def increments(self) -> bool:
        """Whether what arrives is how something changes that the receiver remembers."""
        return False

    def bound(self, shapes: Sequence[tuple[int, ...]]) -> Self:
        """The same for a model whose parameters have these shapes."""
        other = copy(self)
        object.__setattr__(other, "shapes", tuple(shapes))
        return other

    def check(self, before: Size) -> None:
        """Refuse (InputError) options that do not go with a vector like the model's, which takes `before` by then."""

    def error(self, before: Size) -> float | None:  # noqa: ARG002
        """The most of |v|^2 that E |C(v) - v|^2 may be, of a vector that takes `before`; None: nothing is known."""
        return None

    def state(self, length: int) -> Shapes:  # noqa: ARG002
        """Name what a sender remembers of each vector of so many numbers, and its shape; it starts at 0."""
        return {}

    def size(self, before: Size) -> Size:
        """What a vector takes afterwards that took `before`; where that depends on the numbers, at most."""
        return before

    def apply(self, vectors: Mapping[str, Vector]) -> dict[str, Vector]:
        """Transform all vectors of a message that it goes over, at least one; by default each by itself."""
        return {name: self.encode(vector) for name, vector in vectors.items()}

    def encode(self, vector: Vector) -> Vector:
        """Transform one vector: see `Vector.coded`."""
        raise NotImplementedError(f"{type(self).__name__} has neither encode nor apply")


@dataclass(frozen=True)
class Crossed:
    """What has become of a message. payload: what arrives, [C, ...] by name. nbytes: what it took, int64 [C].

    state: what its senders are to remember from now on, [C, *shape] by name.
    """

    payload: dict[str, Tensor]
    nbytes: Tensor
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Chain:
    """Transforms one after the other. option: the list of an experiment that they stand in.

    What a sender remembers of a vector for the n-th has names that begin with `transforms/<n>/<vector>/`.
    """

    transforms: tuple[Transform, ...] = ()
    option: Literal["transforms", "order_transforms"] = "transforms"

    @property
    def usual(self) -> str:
        """The vector that those go over which name none."""
        return "delta" if self.option == "transforms" else "params"

    def fitted(self, shapes: Sequence[tuple[int, ...]], plain: Size) -> Chain:
        """The same for a model whose parameters have these shapes. plain: what its vector takes.

        InputError: one of them does not go with that, or with those before it.
        """
        fitted = replace(self, transforms=tuple(one.bound(shapes) for one in self.transforms))
        sizes, compressed = dict[str, Size](), set[tuple[int, str]]()
        for number, transform in enumerate(fitted.transforms):
            for name in fitted._names(transform):
                before = sizes.get(name, plain)
                with naming(f"{self.option}.{number}"):
                    transform.check(before)
                fitted._hold_behind(number, name, before)
                sizes[name] = fitted._size(number, before)
                if sizes[name].numbers * sizes[name].bits < before.numbers * before.bits:
                    compressed.add((number, name))
        for number, transform in enumerate(fitted.transforms):
            later = {name for one in fitted.transforms[number + 1 :] for name in fitted._names(one)}
            lacking = {name for name in fitted._names(transform) if (number, name) not in compressed} - later
            if transform.feeds_back and lacking:
                remedy = f"no compressor of {', '.join(sorted(lacking))} comes after it; put one there, or remove it"
                raise InputError(f"{self.option}.{number}.kind", kind_of("transforms", transform), remedy)
        return fitted

    def _hold_behind(self, number: int, name: str, before: Size) -> None:
        """Refuse a transform behind feedback that may lose more of a vector than it is sent, or that feeds back."""
        earlier = [one for one in self.transforms[:number] if name in self._names(one)]
        transform, option = self.transforms[number], f"{self.option}.{number}.kind"
        if not any(one.feeds_back for one in earlier):
            return
        if transform.feeds_back:
            raise InputError(option, kind_of("transforms", transform), "one feedback is enough; remove one of them")
        error = transform.error(before)
        if error is not None and error >= 1.0:
            remedy = f"behind feedback, where it may be {error:.3g} times off, runs diverge; take one that {LESS}"
            raise InputError(option, kind_of("transforms", transform), remedy)

    def check(self, carried: Collection[str], known: Collection[str]) -> None:
        """Refuse transforms that do not say what they go over in a message of these vectors, or that name unknown ones.

        known: the names that there are in any message.
        """
        for number, transform in enumerate(self.transforms):
            option = f"{self.option}.{number}.vectors"
            if type(transform).encode is Transform.encode and type(transform).apply is Transform.apply:
                kind = kind_of("transforms", transform)
                raise InputError(f"{self.option}.{number}.kind", kind, "it has neither encode nor apply; write one")
            if not carried:
                kind = kind_of("transforms", transform)
                raise InputError(f"{self.option}.{number}.kind", kind, "nothing is sent for it to go over; remove it")
            if transform.vectors is None and {*carried} != {self.usual}:
                remedy = f"name what it goes over: not {self.usual} alone is sent, but {', '.join(sorted(carried))}"
                raise InputError(option, "(nothing)", remedy)
            for name in transform.vectors or ():
                if name not in known:
                    raise InputError(option, name, f"no such vector is sent; {name_one(name, sorted(known))}")

    def state(self, plain: Size) -> dict[str, tuple[int, ...]]:
        """All that a sender remembers, and its shapes. plain: what each vector takes at first."""
        shapes, sizes = dict[str, tuple[int, ...]](), dict[str, Size]()
        for number, transform in enumerate(self.transforms):
            for name in self._names(transform):
                size = sizes.get(name, plain)
                kept: Any = transform.state(size.numbers)
                if not shaped(kept):
                    raise self._broken(number, f"state returns {shown(kept)}, not shapes by name: tuples of integers")
                shapes |= {f"{_prefix(number, name)}{own}": shape for own, shape in kept.items()}
                sizes[name] = self._size(number, size)
        return shapes

    def sizes(self, plain: Mapping[str, Size]) -> dict[str, Size]:
        """What the vectors of a message take at most when they have gone through, from what they take at first."""
        sizes = dict(plain)
        for number, transform in enumerate(self.transforms):
            sizes |= {name: self._size(number, sizes[name]) for name in self._names(transform) if name in sizes}
        return sizes

    def _size(self, number: int, before: Size) -> Size:
        """What a vector takes after one of the transforms, at most."""
        size: Any = self.transforms[number].size(before)
        if not isinstance(size, Size):
            raise self._broken(number, f"size returns {shown(size)}, not a Size")
        if size.numbers < 0:
            raise self._broken(number, f"size returns a Size of {size.numbers} numbers; none is the least")
        return size

    def _broken(self, number: int, fault: str) -> BrokenPromiseError:
        return broken(f"{self.option}.{number}", "transforms", self.transforms[number], fault)

    def _of(self, name: str, fault: str) -> BrokenPromiseError:
        """What to raise where those that go over a vector, one or several, have broken a promise."""
        kinds = [kind_of("transforms", one) for one in self.transforms if name in self._names(one)]
        return BrokenPromiseError(f"{self.option} = {', then '.join(kinds)}: {fault}")

    def apply(self, payload: Mapping[str, Tensor], sender: Sender) -> Crossed:
        """Send a message, [C, ...] by name.

        InputError: it has a vector that cannot be transformed. BrokenPromiseError: one takes more than was declared.
        """
        covered = {name for transform in self.transforms for name in self._names(transform)} & payload.keys()
        plain = {name: Size(math.prod(own.shape[1:]), 8 * own.element_size()) for name, own in payload.items()}
        most = {name: int(size.nbytes) for name, size in self.sizes(plain).items()}
        nbytes = torch.full_like(sender.clients, sum(most[name] for name in payload.keys() - covered))
        if not covered:
            return Crossed(dict(payload), nbytes, {})
        rows = {name: payload[name].reshape(len(nbytes), plain[name].numbers) for name in covered}
        arrived = {name: torch.empty_like(own) for name, own in rows.items()}
        sender = replace(sender, state={name: own for name, own in sender.state.items() if name.startswith(PREFIX)})
        state = {name: own.clone() for name, own in sender.state.items()}
        for part in _blocks(len(nbytes), sum(plain[name].numbers for name in covered)):
            sent, kept = self._send({name: own[part] for name, own in rows.items()}, plain, sender[part])
            for name, vector in sent.items():
                made: tuple[Any, dict[str, Tensor]] = vector.received()
                decoded = made[0]
                kept |= made[1]
                if (
                    not isinstance(decoded, Tensor)
                    or decoded.shape != arrived[name][part].shape
                    or not decoded.is_floating_point()
                ):
                    fault = f"{name} arrives as {shown(decoded)} where {shown(arrived[name][part])} was sent"
                    raise self._of(name, f"{fault}; look at what it decodes")
                arrived[name][part] = decoded
                taken = vector.size.nbytes + torch.zeros_like(nbytes[part])
                if bool((taken > most[name]).any()):
                    raise self._of(
                        name, f"{name} takes {int(taken.max())} bytes, and {most[name]} at most are declared"
                    )
                nbytes[part] += taken
            for name, value in kept.items():
                if name not in state or value.shape != state[name][part].shape:
                    raise BrokenPromiseError(f"{name}, {list(value.shape)}, is not what its transform declares to keep")
                state[name][part] = value
        return Crossed(
            {name: arrived[name].reshape(own.shape) if name in covered else own for name, own in payload.items()},
            nbytes,
            state,
        )

    def _send(
        self, rows: Mapping[str, Tensor], sizes: Mapping[str, Size], sender: Sender
    ) -> tuple[dict[str, Vector], dict[str, Tensor]]:
        """A block of senders' vectors [k, n] as they cross, and what the senders are to remember."""
        sent = {name: Vector(own, sizes[name], sender) for name, own in rows.items()}
        state: dict[str, Tensor] = {}
        for number, transform in enumerate(self.transforms):
            covered: dict[str, Vector] = {}
            for place, name in enumerate(self._names(transform)):
                if name in sent:
                    self._hold(number, name, sent[name], sender)
                    covered[name] = replace(sent[name], sender=sender.of(_prefix(number, name)), place=place)
            if covered:
                sent |= self._applied(number, transform, covered)
            for name in covered:
                state |= {_prefix(number, name) + own: kept for own, kept in sent[name].sender.state.items()}
        return sent, state

    def _applied(self, number: int, transform: Transform, vectors: Mapping[str, Vector]) -> dict[str, Vector]:
        """What a transform makes of the vectors that it goes over."""
        lent = [vector.rows._version for vector in vectors.values()]
        try:
            made: Any = transform.apply(vectors)
        except BrokenPromiseError as error:
            raise self._broken(number, str(error)) from error
        if [vector.rows._version for vector in vectors.values()] != lent:
            raise self._broken(number, "it changes the rows that it is handed; have it make others")
        if not isinstance(made, Mapping) or made.keys() != vectors.keys():
            fault = f"apply returns {', '.join(map(str, made)) if isinstance(made, Mapping) else shown(made)}"
            raise self._broken(number, f"{fault}, not {', '.join(vectors)}")
        for name, vector in made.items():
            if not isinstance(vector, Vector):
                raise self._broken(number, f"it makes {shown(vector)} of {name}, not a Vector: see Vector.coded")
        return dict(made)

    def _hold(self, number: int, name: str, vector: Vector, sender: Sender) -> None:
        """Refuse whole numbers, and vectors of another length than those for which there is memory."""
        option = f"{self.option}.{number}.vectors"
        if not vector.rows.is_floating_point():
            raise InputError(option, name, "its numbers are whole, and codes of something; leave it out")
        for own, shape in self.transforms[number].state(vector.size.numbers).items():
            if sender.state[_prefix(number, name) + own].shape[1:] != shape:
                remedy = f"has {vector.size.numbers} numbers, and {own} is remembered of vectors like the model only"
                raise InputError(option, name, remedy)

    def _names(self, transform: Transform) -> tuple[str, ...]:
        return (self.usual,) if transform.vectors is None else transform.vectors


@options
class Clip(Transform):
    """x <- x min(1, max_norm / |x|), with the norm of all vectors that it goes over together. The bytes stay."""

    max_norm: PositiveFloat
    """The largest norm that is left as it is."""

    keeps_statistics: ClassVar[bool] = False
    summable: ClassVar[bool] = True

    def apply(self, vectors: Mapping[str, Vector]) -> dict[str, Vector]:
        """See `Transform`."""
        # In double precision no square overflows; a row of zeros gives infinity, which is cut to 1.
        squares = [halving_sum(vector.rows.to(torch.float64).square(), 1) for vector in vectors.values()]
        factors = (self.max_norm / sum(squares[1:], squares[0]).sqrt()).clamp(max=1.0).unsqueeze(1)
        return {name: vector.coded(vector.rows * factors.to(vector.rows.dtype)) for name, vector in vectors.items()}


@options
class Noise(Transform):
    """x <- x + std z with z standard normal from the client's own stream. It takes the same bytes."""

    std: NonNegativeFloat
    """Standard deviation of the noise."""
    stream: str = "noise"
    """Name of the draw; two noises in one list need two names, or they add the same numbers."""

    keeps_statistics: ClassVar[bool] = False
    summable: ClassVar[bool] = True

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        return vector.coded(vector.rows + self.std * vector.draw("normal", self.stream))

    def error(self, before: Size) -> float:  # noqa: ARG002
        """Nothing bounds it."""
        return math.inf if self.std else 0.0


def _prefix(number: int, name: str) -> str:
    return f"{PREFIX}{number}/{name}/"


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of so many rows, so many numbers wide, whose working copies fit in memory."""
    height = max(1, BLOCK // max(1, width))
    return (slice(start, start + height) for start in range(0, count, height))
