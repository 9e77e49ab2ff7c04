"""Methods in which scalars cross instead of vectors: everybody draws the directions, and adds up the same model.

    x <- x - lr * a_j * w_j,    j = 0, 1, ... in the order of a log that server and clients share

A client keeps a replica of x and replays the part of the log that it has not seen; the server keeps its own in the
same way. Directions come from seeds of eight bytes that crossed, and from nothing else. Of an order, which is one for
a whole cohort, a client that was away for r rounds uses, and is counted, the rows of these r rounds; what it joins with
is counted once. Replay is exact, so that replicas cannot drift and need no snapshots, hashes or synchronisation.
Nothing keeps x within a problem's box. Replicas have the same bits where directions have, on devices of one kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from fedsim.engine.cohort import Cohort
from fedsim.engine.network import Batch
from fedsim.engine.stack import Stack
from fedsim.engine.store import Shapes
from fedsim.errors import InputError
from fedsim.exchange import All, Orders, Replies, Scalar, Window
from fedsim.options import BatchSize, Count, Positive, one_of, options
from fedsim.strategy import Metrics, ProblemView, ServerState, observed
from fedsim.streams import MASK, Streams
from fedsim.zeroth_order.codec import OneByte, Sign
from fedsim.zeroth_order.directions import DRAWS, Keys, Sliceable, part
from fedsim.zeroth_order.perturbation import perturb_
from fedsim.zeroth_order.replay import replay_
from fedsim.zeroth_order.search import batches

SEED = 8
"""Bytes of a seed."""
MEMBER = 4
"""Bytes of a client's id in a list of who took part."""
AT_ONCE = 2**20
"""Numbers of models beside their own that clients evaluate at once; above, one copy of theirs is moved in place."""
LARGEST_SLOPE = 1000.0
"""What a slope counts for at most in the importance of its direction (Qin et al. 2024)."""
PUBLIC = Streams(0)
"""Of directions that are named by a seed of their own: a function that needs nothing else."""
Join = Literal["model", "replay"]
Rows = Mapping[str, Tensor]
"""Columns of a log, [L, ...] by name."""


@options
class Float32:
    """A scalar as it is, in single precision; 0 for NaN and infinity. Four bytes."""

    def encode(self, values: Tensor, uniform: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Float32 of the same shape; there is nothing to choose."""
        return finite(values.to(torch.float32))

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values."""
        return codes.to(dtype)

    def nbytes(self, count: int) -> int:
        """Four bytes a scalar."""
        return 4 * count


ScalarCodec = Annotated[OneByte | Sign | Float32, one_of(byte=OneByte, sign=Sign, fp32=Float32)]
"""A code of scalars, or its name (byte, sign, fp32), or a table with `kind` and its options."""
CODECS: Mapping[str, type[OneByte] | type[Sign] | type[Float32]] = {"byte": OneByte, "sign": Sign, "fp32": Float32}


def described(codec: OneByte | Sign | Float32) -> dict[str, Scalar]:
    """A codec as settings of an order."""
    kind = next(name for name, made in CODECS.items() if type(codec) is made)
    return {"codec": kind} | {f"codec-{field.name}": getattr(codec, field.name) for field in fields(codec)}


def codec_of(config: Mapping[str, Scalar]) -> OneByte | Sign | Float32:
    """The codec that an order describes."""
    own = {name.removeprefix("codec-"): value for name, value in config.items() if name.startswith("codec-")}
    made: Any = CODECS[str(config["codec"])]
    codec: OneByte | Sign | Float32 = made(**own)
    return codec


def packed(codec: OneByte | Sign | Float32, codes: Tensor) -> Tensor:
    """Codes [k, G] as they cross: signs four a byte, uint8 [k, ceil(G / 4)]; others as they are."""
    if not isinstance(codec, Sign):
        return codes
    width = -(-codes.shape[1] // 4)
    filled = torch.zeros(len(codes), 4 * width, dtype=torch.uint8, device=codes.device)
    filled[:, : codes.shape[1]] = (codes + 1).to(torch.uint8)
    quads = filled.view(len(codes), width, 4)
    return quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


def unpacked(codec: OneByte | Sign | Float32, payload: Tensor, count: int) -> Tensor:
    """The codes [k, count] that crossed as a payload of `packed`."""
    if not isinstance(codec, Sign):
        return payload
    parts = torch.stack([payload >> shift & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)
    return parts[:, :count].to(torch.int8) - 1


def finite(values: Tensor) -> Tensor:
    """The values with 0 in place of NaN and infinity: a step that cannot be taken is left out."""
    return torch.where(values.isfinite(), values, 0.0)


@dataclass(frozen=True)
class Contributions:
    """J terms a_j w_j in their order.

    keys: names of the directions under `streams`. scalars: a_j, float64 [J]. rounds: whence they are, int64 [J].
    """

    streams: Streams
    keys: Keys
    scalars: Tensor
    rounds: Tensor

    def apply_(self, rows: Tensor, rate: float, kind: Sliceable, since: Tensor | None = None) -> Tensor:
        """Add -rate a_j w_j in place to x [d] or to rows [k, d]; return it.

        since: of each row the first round that it lacks, [k]; the terms of earlier rounds leave its bits alone.
        """
        scalars = self.scalars
        if since is not None:
            scalars = torch.where(self.rounds.unsqueeze(1) >= since, scalars.unsqueeze(1), 0.0)
        return replay_(rows, self.streams, self.keys, scalars, rate=rate, kind=kind)


def of_codes(seed: Tensor, log: Rows, codec: OneByte | Sign | Float32, aggregate: str) -> Contributions:
    """The terms of codes [L, G] that clients `owners` int64 [L] sent in `rounds` int64 [L]: a = value / S or / sqrt(S).

    S counts the scalars of the term's round, which the log holds whole. Scalar g of client c is about the direction of
    number c G + g in its round, so that one client with M samples draws what M clients with one each do.
    """
    rounds, owners, codes = log["rounds"], log["owners"], log["codes"]
    samples = codes.shape[1]
    _, place, counts = torch.unique(rounds, return_inverse=True, return_counts=True)
    sums = (counts[place] * samples).double()
    values = codec.decode(codes, torch.float64) / (sums if aggregate == "mean" else sums.sqrt()).unsqueeze(1)
    return Contributions(
        Streams(int(seed)),
        Keys("one-byte", owner=samples_of(owners, samples).flatten(), round=rounds.repeat_interleave(samples)),
        values.flatten(),
        rounds.repeat_interleave(samples),
    )


def samples_of(owners: Tensor, samples: int) -> Tensor:
    """The numbers of the directions of clients int64 [k] in a round, int64 [k, G]."""
    return owners.unsqueeze(1) * samples + torch.arange(samples, device=owners.device)


def of_scalars(log: Rows) -> Contributions:
    """The terms of scalars [L, K P] along P directions of each of K seeds, int64 [L, K]: a = scalar / P."""
    rounds, seeds, scalars = log["rounds"], log["seeds"], log["scalars"]
    perturbations = scalars.shape[1] // seeds.shape[1]
    keys = seeded_keys(seeds.flatten(), perturbations)
    return Contributions(
        PUBLIC, keys, scalars.double().flatten() / perturbations, rounds.repeat_interleave(scalars.shape[1])
    )


def of_losses(seed: Tensor, log: Rows, shape: Population) -> Contributions:
    """The terms of a population's mean losses [L, n] in `rounds` int64 [L]."""
    rounds, scalars = log["rounds"], shape.scalars(log["losses"])
    count = scalars.shape[1]
    return Contributions(
        Streams(int(seed)), population_keys(rounds, count), scalars.flatten(), rounds.repeat_interleave(count)
    )


def population_keys(rounds: Tensor, count: int) -> Keys:
    """Names of the `count` directions of each of the rounds int64 [L], one round after the other."""
    draws = torch.arange(count, device=rounds.device).repeat(len(rounds))
    return Keys("fedes", round=rounds.repeat_interleave(count), draw=draws)


@dataclass(frozen=True)
class Population:
    """How losses of n perturbed models weigh the perturbations.

    size: n. sigma: their radius. antithetic: the second half of them mirrors the first. ranks: centred ranks take the
    place of losses.
    """

    size: int
    sigma: float
    antithetic: bool
    ranks: bool

    @property
    def directions(self) -> int:
        """How many directions are drawn."""
        return self.size // 2 if self.antithetic else self.size

    def scalars(self, losses: Tensor) -> Tensor:
        """The factors s_j / (n sigma) of the directions, with mirrored ones combined: float64 [L, directions].

        losses: [L, n].
        """
        shaped = losses.double()
        if self.ranks:
            ordered = shaped.sort(dim=1).values
            low, high = (torch.searchsorted(ordered, shaped, right=right) for right in (False, True))
            # Equal losses share the mean of their ranks, so that where all are equal nothing moves.
            shaped = (low + high - 1) / 2.0 / (self.size - 1) - 0.5
        if self.antithetic:
            shaped = shaped[:, : self.directions] - shaped[:, self.directions :]
        return shaped / (self.size * self.sigma)


def seeded_keys(seeds: Tensor, draws: int = 1) -> Keys:
    """Names, under `PUBLIC`, of so many directions of each seed, int64 [K] from 0, one seed after the other."""
    each = torch.arange(draws, device=seeds.device).repeat(len(seeds))
    seeds = seeds.repeat_interleave(draws)
    return Keys("shared-seed", owner=seeds & MASK, round=seeds >> 32, draw=each)


def pool_keys(seed: Tensor, places: Tensor) -> Keys:
    """Names, under `PUBLIC`, of the directions at `places` int64 [J], below 2^32, of the pool of one seed."""
    owner, round_ = int(seed) & MASK, int(seed) >> 32
    return Keys("pool", owner=owner, round=round_, step=places // DRAWS, draw=places % DRAWS)


def rebuilt(start: Tensor, seed: Tensor, sums: Tensor, rate: float, kind: Sliceable) -> Tensor:
    """x_0 - rate sum_j a_j w_j, [d], of x_0 [d] and the coefficients a [K] of a pool; x_0 stays as it is."""
    places = sums.nonzero().squeeze(1)
    return replay_(start.clone(), PUBLIC, pool_keys(seed, places), sums[places], rate=rate, kind=kind)


def summed(places: Tensor, scalars: Tensor, pool: int) -> Tensor:
    """Sums [k, K] of pairs, `places` int64 [k, T] and scalars [k, T], each added up in the order of the steps."""
    sums, rows = scalars.new_zeros(len(scalars), pool), torch.arange(len(scalars), device=scalars.device)
    for place, scalar in zip(places.unbind(1), scalars.unbind(1), strict=True):
        sums[rows, place] += scalar
    return sums


def importance(sizes: Tensor, counts: Tensor) -> Tensor:
    """Probabilities [K] of a pool's directions: softmax of their mean |p|, scaled to lie between 0 and 1.

    sizes: sums of |p|, each at most `LARGEST_SLOPE`; counts: how many; both [K]. A direction that nobody has drawn
    counts as one whose p is 0.
    """
    mean = sizes / counts.clamp(min=1.0)
    low, high = mean.min(), mean.max()
    span = high - low
    return torch.softmax((mean - low) / torch.where(span > 0, span, 1.0), dim=0)


def mean_loss(replies: Replies) -> Metrics:
    """`train_loss`, where any client's loss is finite: what is not finite moves nothing, and ends nothing."""
    return {name: value for name, value in observed(replies).items() if math.isfinite(value)}


@options
class SharedSeed:
    """A server that draws one seed for the run, from the run's own."""

    purpose: ClassVar[str] = ""

    lr: Positive = 0.01
    """The learning rate, the same in all rounds."""
    directions: Sliceable = "gaussian"
    """The kind of the random vectors."""

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed of 63 bits."""
        seed = torch.tensor([streams.derive(self.purpose) >> 1], device=state.params.device)
        return replace(state, memory={**state.memory, "seed": seed})


@options
class ReplicaServer(SharedSeed):
    """The server of clients that keep replicas: a model of its own, and the log that the replicas still lack."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Names of the log's columns beside `rounds`."""
    private: ClassVar[tuple[str, ...]] = ()
    """Columns that the server keeps to itself."""

    join: Join = "model"
    """What a client begins with: the current model, or the whole log (replay), where the first model is public."""
    history: Count | None = None
    """How many rounds of the log are kept at most; who was away for longer begins again with the model. Not given: all,
    which replay needs.
    """

    def __post_init__(self) -> None:
        if self.join == "replay" and self.history is not None:
            raise InputError("history", self.history, "who joins by replay needs the whole log; remove it")

    def begin(self, problem: ProblemView, columns: Rows, **memory: Tensor) -> ServerState:
        """The state before the first round: an empty log (columns [0, ...]), and nobody has joined."""
        params = problem.initial()
        log = {"rounds": torch.zeros(0, dtype=torch.int64, device=params.device), **columns}
        known = {"synced": torch.full((problem.num_clients,), -1), "first": torch.tensor(0)}
        start = {"start": params} if self.join == "replay" else {}
        return ServerState(params, memory={**log, **known, **start, **memory})

    def order(
        self,
        state: ServerState,
        chosen: Tensor,
        payload: Rows,
        config: Mapping[str, Scalar],
        sizes: Tensor,
        *,
        joining: int,
        every: int = 0,
        own: int = 0,
        again: bool = False,
    ) -> tuple[Orders, Window]:
        """Send what the clients int64 [C] lack of the log, and the model where one of them begins.

        payload: what is sent beside it. sizes: bytes of the log's rows, int64 [L]. joining: bytes, beside the model's,
        that a client is sent once; every: bytes that each is sent; own: bytes of the log that a client knows itself.
        again: everybody is sent the model, and nothing of the log.
        """
        memory, replays = state.memory, self.join == "replay"
        synced = memory["synced"][chosen]
        fresh = synced < memory["first"]
        at = 0 if replays else state.round
        begins = fresh | again
        begin = torch.where(begins, at, synced)
        oldest = int(begin.min()) if len(begin) else state.round
        rounds = memory["rounds"]
        lacking = rounds >= oldest
        relayed = [name for name in ("rounds", *self.columns) if name not in self.private]
        sent = {name: memory[name][lacking] for name in relayed} | dict(payload)
        if bool(begins.any()):
            sent["params"] = memory["start"] if replays else state.params
        before = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
        nbytes = every + before[-1] - before[torch.searchsorted(rounds.cpu(), begin)]
        model = 0 if replays else state.params.numel() * state.params.element_size()
        nbytes = nbytes + torch.where(begins, model, -own) + fresh * joining
        settings = {"from": oldest, "at": at, "lr": self.lr, "directions": self.directions, **config}
        return Orders("train", chosen, sent, settings, state.round, encoded=nbytes), All()

    def proceed(
        self, state: ServerState, replies: Replies, params: Tensor, added: Rows, **memory: Tensor
    ) -> ServerState:
        """The state one round later, with the model and with rows added to the log.

        Whoever answered has the log up to this round; what nobody lacks any more is dropped.
        """
        held = state.memory
        synced = held["synced"].clone()
        synced[replies.clients] = state.round
        joined = synced[synced >= 0]
        first = 0 if self.join == "replay" else int(joined.min()) if len(joined) else state.round + 1
        if self.history is not None:
            first = max(first, state.round + 1 - self.history)
        rounds = torch.cat((held["rounds"], added["rounds"]))
        kept = rounds >= first
        log = {name: torch.cat((held[name], added[name]))[kept] for name in ("rounds", *self.columns)}
        own = {"synced": synced, "first": torch.tensor(first), **memory}
        return ServerState(params, state.round + 1, memory={**held, **log, **own})

    def in_round(self, state: ServerState, count: int) -> Tensor:
        """The round of so many new rows of the log, int64 [count]."""
        return torch.full((count,), state.round, device=state.params.device)


@options
class Replica:
    """A client that keeps a replica of the model, and asks for values only.

    The state is the replica, d numbers, and one for the round that it is the model of.
    """

    black_box: ClassVar[bool] = True

    batch_size: BatchSize = "full"
    """Examples that a step's values are about, each step an independent batch; full: all of the client's, and all that
    a black box knows.
    """

    def state(self, dimension: int) -> Shapes:
        """The replica, and its round plus one, 0 before the client has joined."""
        return {"replica": (dimension,), "version": ()}

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """The replica, a direction, and the points on either side with the copies that are evaluated."""
        return 10 * dimension

    def steps_of(self, examples: Tensor, batches: int) -> Tensor:
        """The local steps of a reply with so many batches, int64 [C]: none, where values are about everything."""
        return torch.zeros_like(examples) + (0 if self.batch_size == "full" else batches)

    def batches(self, cohort: Cohort, steps: int) -> list[Batch | None]:
        """What the values of each step are about."""
        return list(batches(cohort, self.batch_size, steps))

    def caught_up(self, cohort: Cohort, log: Contributions) -> Tensor:
        """The model of the order's round, [C, d], replayed from each client's replica, and kept in its place."""
        config, version = cohort.config, cohort.state["version"]
        replica, since = cohort.state["replica"], version - 1
        fresh = since < float(config["from"])
        if bool(fresh.any()):
            replica = torch.where(fresh.unsqueeze(1), cohort.received("params"), replica)
            since = torch.where(fresh, float(config["at"]), since)
        log.apply_(replica, float(config["lr"]), kind_of(config), since)
        cohort.keep(replica=replica, version=torch.full_like(version, cohort.round + 1))
        return replica


def kind_of(config: Mapping[str, Scalar]) -> Sliceable:
    """The kind of directions that an order names."""
    kind: Any = config["directions"]
    named: Sliceable = kind
    return named


@dataclass(frozen=True)
class Directions:
    """Random directions by name: one that all clients share, or one each."""

    streams: Streams
    keys: Keys
    kind: Sliceable

    def drawn_for(self, x: Tensor) -> Tensor:
        """The directions, [J, d], for models x [k, d]."""
        return part(self.kind, self.streams, self.keys, 0, x.shape[1], dtype=x.dtype, device=x.device)

    def add_(self, stack: Stack, distance: float) -> Stack:
        """Move the models of a stack along them in place, block by block; return it."""
        perturb_(stack.leaves, self.streams, self.keys, distance, kind=self.kind)
        return stack


def slopes(cohort: Cohort, batch: Batch | None, x: Tensor, v: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Central differences (f(x + mu v) - f(x - mu v)) / (2 mu), 0 where not finite, and the mean of both values: [k].

    x: [k, d]. v: [d], or [k, d].
    """
    shift = mu * v
    return _differences(cohort.query(torch.stack((x + shift, x - shift), dim=1), batch), mu)


def slopes_along(
    cohort: Cohort, batch: Batch | None, x: Tensor, directions: Directions, mu: float
) -> tuple[Tensor, Tensor]:
    """`slopes` of x [k, d] along directions that are not drawn yet, with the same bits.

    On batches of large models, in the memory of one evaluation: v is drawn twice and never whole, and nothing but one
    stack of the models is moved.
    """
    if batch is None or 2 * x.numel() <= AT_ONCE:
        return slopes(cohort, batch, x, directions.drawn_for(x), mu)
    # One side after the other from x itself, not back by 2 mu v, so that no rounding is left of the first.
    sides = [cohort.evaluate(directions.add_(cohort.stack(x), distance), batch) for distance in (mu, -mu)]
    return _differences(torch.stack(sides, dim=1), mu)


def _differences(values: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Slopes and means, [k], of values [k, 2] on both sides."""
    return finite((values[:, 0] - values[:, 1]) / (2.0 * mu)), values.mean(dim=1)
