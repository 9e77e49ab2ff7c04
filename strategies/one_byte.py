"""Just One Byte: every machine sends one byte a direction, and all of them take the same step.

x <- x - lr * a_S * value(c_kg) * z_kg, for machines k in ascending order and g = 0 .. G-1
S = sum_k G over the machines of the round, a_S = 1/S (mean) or 1/sqrt(S)
Uplink G bytes a machine. Downlink the codes of the other machines since it last took part, and 4 bytes a member where
the members of a round are not those of the round before. A machine joins with the model (d floats, the members, the
seed), or by replay of the whole log where the first model is public. Codes of a round reach a machine with its next
order, so there is one window a round. Zelikman et al. 2023, whose program takes 1/sqrt(S).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.server import InputError, Metrics, Order, PositiveInt, ProblemView, Replies, ServerState, Window, options
from fedsim.zeroth_order import (
    MEMBER,
    SEED,
    OneByte,
    ReplicaServer,
    ScalarCodec,
    described,
    mean_loss,
    of_codes,
    unpacked,
)


@options
class JustOneByte(ReplicaServer):
    """Needs the client `one_byte`."""

    purpose: ClassVar[str] = "one-byte"
    aggregates: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("owners", "codes", "listed")
    private: ClassVar[tuple[str, ...]] = ("listed",)
    down: ClassVar[frozenset[str]] = frozenset(
        {"params", "seed", "rounds", "owners", "codes", "from", "at", "lr", "directions", "samples", "agg"}
        | {"codec", "codec-delta", "codec-scale", "codec-magnitude"}
    )
    up: ClassVar[frozenset[str]] = frozenset({"codes"})

    samples: PositiveInt = 1
    """G, directions of a machine and round."""
    agg: Literal["mean", "sqrt"] = "mean"
    """a_S, how the scalars of a round are averaged: mean, 1/S, or sqrt, 1/sqrt(S)."""
    codec: ScalarCodec = OneByte()
    """How a scalar is coded: byte, in one; sign, in two bits; fp32, in four bytes."""

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: ARG002
        """Refuse more directions than have names."""
        if self.samples * population >= 2**32:
            raise InputError("samples", self.samples, f"{population} clients have at most {2**32 // population} each")

    def init(self, problem: ProblemView) -> ServerState:
        """An empty log, and nobody has joined."""
        device = problem.initial().device
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        codes = self.codec.encode(torch.zeros(0, self.samples, device=device))
        return self.begin(problem, {"owners": nothing, "codes": codes, "listed": nothing}, members=nothing)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Relay the codes that the machines lack; wait for everybody."""
        memory, codes = state.memory, self.codec.nbytes(self.samples)
        peers = MEMBER * len(memory["members"]) if self.join == "model" else 0
        config = {"samples": self.samples, "agg": self.agg, **described(self.codec)}
        return self.order(
            state,
            chosen,
            {"seed": memory["seed"]},
            config,
            codes + memory["listed"].cpu(),
            joining=SEED + peers,
            own=codes,
        )

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take the step that every machine takes."""
        members, memory = replies.clients.to(state.params.device), state.memory
        codes = unpacked(self.codec, replies.payload["codes"], self.samples)
        listed = torch.zeros_like(members)
        if len(members) and not torch.equal(members, memory["members"]):
            listed[0] = MEMBER * len(members)
        rows = {"rounds": self.in_round(state, len(members)), "owners": members, "codes": codes, "listed": listed}
        step = of_codes(memory["seed"], rows, self.codec, self.agg)
        params = step.apply_(state.params.clone(), self.lr, self.directions)
        known = members if len(members) else memory["members"]
        metrics = dict(mean_loss(replies))
        if "saturated" in replies.metrics:
            metrics["saturated"] = float(replies.metrics["saturated"].sum())
        return self.proceed(state, replies, params, rows, members=known), metrics, True
