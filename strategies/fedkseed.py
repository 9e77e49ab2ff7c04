"""FedKSeed: a model that is the first one and a sum of pooled directions, of which the coefficients cross.

x = x_0 - lr * sum_j a_j z_j, j = 0 .. K-1;  a <- a + (1/k) sum_i h_i over the k clients of a round
Importance (FedKSeed-Pro): clients draw directions with probabilities softmax(minmax(mean |p| of each direction so far))
Downlink K floats (2 K with importance), and once the pool's seed, of 8 bytes, and x_0, d floats, unless it is public.
Uplink K floats, or T pairs of an index and a float, 8 T bytes. Qin et al. 2024. By linearity this is the mean of the
clients' local models; the rate is the same in all rounds. Another aggregator takes the place of the mean of the h_i.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import (
    All,
    InputError,
    Metrics,
    Order,
    ProblemView,
    Replies,
    Scalar,
    ServerState,
    Window,
    extended,
    options,
)
from fedsim.zeroth_order import LARGEST_SLOPE, SEED, SharedSeed, importance, mean_loss, rebuilt, summed


@options
class FedKSeed(SharedSeed):
    """Needs the client `fedkseed`."""

    purpose: ClassVar[str] = "fedkseed"
    down: ClassVar[frozenset[str]] = frozenset(
        {"params", "seed", "sums", "probabilities", "reply", "sampling", "lr", "directions"}
    )

    pool: Annotated[int, Field(ge=1, le=2**31 - 1)] = 4096
    """K, how many directions there are."""
    reply: Literal["pairs", "dense"] = "pairs"
    """What a client sends: pairs of an index and a scalar, or the dense sums h_i."""
    sampling: Literal["uniform", "importance"] = "uniform"
    """Clients draw directions uniformly, or by importance, which needs pairs."""
    start: Literal["sent", "public"] = "sent"
    """x_0 is sent to who joins, or public."""

    def __post_init__(self) -> None:
        if self.sampling == "importance" and self.reply == "dense":
            raise InputError("reply", self.reply, "importance is made of single scalars; use 'pairs'")

    @property
    def up(self) -> frozenset[str]:
        """What it reads of replies."""
        return frozenset({"places", "scalars"} if self.reply == "pairs" else {"sums"})

    def init(self, problem: ProblemView) -> ServerState:
        """All coefficients are 0, and nobody has joined."""
        params = problem.initial()
        sums = params.new_zeros(self.pool)
        joined = torch.zeros(problem.num_clients, dtype=torch.bool)
        memory = {"start": params, "sums": sums, "joined": joined}
        if self.sampling == "importance":
            memory |= {"sizes": sums.double(), "counts": sums.double()}
        return ServerState(params, memory=memory)

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Those that come have not joined."""
        joined = extended(state.memory["joined"], problem.num_clients, False)
        return replace(state, memory={**state.memory, "joined": joined})

    def forget(self, state: ServerState, clients: Tensor) -> ServerState:
        """They have to join again."""
        joined = state.memory["joined"].clone()
        joined[clients] = False
        return replace(state, memory={**state.memory, "joined": joined})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the coefficients; wait for everybody."""
        memory, itemsize = state.memory, state.params.element_size()
        payload = {"seed": memory["seed"], "sums": memory["sums"]}
        config: dict[str, Scalar] = {"reply": self.reply, "lr": self.lr, "directions": self.directions}
        if self.sampling == "importance":
            config["sampling"] = self.sampling
            payload["probabilities"] = importance(memory["sizes"], memory["counts"]).to(state.params.dtype)
        fresh = ~memory["joined"][chosen]
        if bool(fresh.any()):
            payload["params"] = memory["start"]
        every = self.pool * itemsize * (2 if self.sampling == "importance" else 1)
        once = SEED + (len(state.params) * itemsize if self.start == "sent" else 0)
        return Order("train", chosen, payload, config, state.round, encoded=every + once * fresh.long()), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Add the mean of the sums; the model is rebuilt from the first one.

        A pair of a direction that is none of the pool's counts for nothing.
        """
        if not len(replies):
            return replace(state, round=state.round + 1), {}, True
        memory = dict(state.memory)
        if self.reply == "pairs":
            places, scalars = replies.payload["places"].long(), replies.payload["scalars"]
            known = (places >= 0) & (places < self.pool)  # a client on another machine may name any
            places, scalars = torch.where(known, places, 0), torch.where(known, scalars, 0.0)
            rows = summed(places, scalars, self.pool)
        else:
            rows = replies.payload["sums"]
        if self.sampling == "importance":
            found = scalars.double().abs().clamp(max=LARGEST_SLOPE)
            memory["sizes"] = memory["sizes"] + summed(places, found, self.pool).sum(dim=0)
            memory["counts"] = memory["counts"] + summed(places, known.to(found.dtype), self.pool).sum(dim=0)
        memory["sums"] = memory["sums"] + replies.combine(rows.new_full((len(replies),), 1.0 / len(replies)), rows=rows)
        memory["joined"] = memory["joined"].clone()
        memory["joined"][replies.clients] = True
        params = rebuilt(memory["start"], memory["seed"], memory["sums"], self.lr, self.directions)
        return ServerState(params, state.round + 1, memory=memory), mean_loss(replies), True
