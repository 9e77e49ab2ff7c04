"""The server's half of methods in which everybody repeats the same steps along directions known by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, Rate, options
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Order, Replies, Scalar
from fedsim.exchange.windows import All, Window
from fedsim.server.participation import extended
from fedsim.server.strategy import Metrics, ProblemView, ServerState, Strategy, observed
from fedsim.zeroth_order.directions import Sliceable
from fedsim.zeroth_order.shared_seed import Join, Rows


def mean_loss(replies: Replies) -> Metrics:
    """`train_loss`, where any client's loss is finite: what is not finite moves nothing, and ends nothing."""
    return {name: value for name, value in observed(replies).items() if math.isfinite(value)}


@options
class SharedSeed(Strategy):
    """A server that draws one seed for the run, from the run's own."""

    purpose: ClassVar[str] = ""

    lr: Rate = 0.01
    """The learning rate, the same in all rounds."""
    directions: Sliceable = "gaussian"
    """The kind of the random vectors."""

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed of 63 bits."""
        seed = torch.tensor([streams.seed_of(self.purpose)], device=state.params.device)
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
    history: PositiveInt | None = None
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

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Those that come have not joined."""
        synced = extended(state.memory["synced"], problem.num_clients, -1)
        return replace(state, memory={**state.memory, "synced": synced})

    def forget(self, state: ServerState, clients: Tensor) -> ServerState:
        """They have to join again."""
        synced = state.memory["synced"].clone()
        synced[clients] = -1
        return replace(state, memory={**state.memory, "synced": synced})

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
    ) -> tuple[Order, Window]:
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
        return Order("train", chosen, sent, settings, state.round, encoded=nbytes), All()

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
