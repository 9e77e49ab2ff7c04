"""The way down compressed: clients have the model, and are sent how it steps.

q <- q + C(h - q), of which C(h - q) crosses, and both ends step along q;  h is what the server would step along
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.core.errors import InputError, naming
from fedsim.core.options import options
from fedsim.core.plugins import kind_of
from fedsim.core.streams import SERVER, Streams
from fedsim.exchange.messages import Late, Order, Replies, Size
from fedsim.exchange.transforms import LESS, PREFIX, Chain, Sender, Transform
from fedsim.server.participation import extended
from fedsim.server.strategy import Averaging, ProblemView, ServerState

LACKS, SENT, SEED, SHAPE = "lacks", "sent", "seed", "shape"
"""What a memory calls the bytes that each client lacks, q, the seed of draws, and, before a leaf's place, its shape."""


@options
class BothWays(Averaging):
    """A server that may send messages about its step in place of the model.

    Who has missed some is sent them all, or the model, whichever is shorter.
    """

    parts: ClassVar[Mapping[str, str]] = {**Averaging.parts, "downlink": "transforms"}

    downlink: Any = None
    """A compressor of the server's step, a name or a table, which has a feedback of its own. Not given: the model goes
    down as it is.
    """

    @property
    def compressor(self) -> Transform | None:
        """What compresses the way down."""
        return self.made.get("downlink")

    def init(self, problem: ProblemView) -> ServerState:
        """Nobody has anything. InputError: the compressor does not go with such a model."""
        state, own = super().init(problem), self.compressor
        if own is None:
            return state
        shapes, size = problem.layout.shapes, Size.of(state.params)
        with naming("downlink"):
            bound = own.bound(shapes)
            bound.check(size)
            kind, error = kind_of("transforms", own), bound.error(size)
            if own.feeds_back or own.vectors is not None:
                raise InputError("kind", kind, "it is handed the only vector, with feedback; take a compressor alone")
            if error is not None and error >= 1.0:
                raise InputError(
                    "kind", kind, f"it may be {error:.3g} times off, and runs diverge; take one that {LESS}"
                )
        memory = {f"{SHAPE} {place}": torch.tensor(shape) for place, shape in enumerate(shapes)}
        memory |= {name: state.params.new_zeros((1, *kept)) for name, kept in _chain(own, shapes).state(size).items()}
        memory[LACKS] = torch.full((problem.num_clients,), int(size.nbytes))
        return remembering(state, memory | {SENT: torch.zeros_like(state.params)})

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """With a seed, for compressors that draw."""
        seed = torch.tensor(streams.seed_of("downlink"))
        return state if self.compressor is None else remembering(state, {SEED: seed})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Those that are new have nothing."""
        if self.compressor is None:
            return state
        lacks = extended(state.memory[LACKS], problem.num_clients, int(Size.of(state.params).nbytes))
        return remembering(state, {LACKS: lacks})

    def forget(self, state: ServerState, clients: Tensor) -> ServerState:
        """They have the model no longer."""
        if self.compressor is None:
            return state
        whole = torch.full_like(clients.cpu(), int(Size.of(state.params).nbytes))
        return remembering(state, {LACKS: state.memory[LACKS].index_copy(0, clients.cpu(), whole)})

    def order(self, state: ServerState, chosen: Tensor, late: Late = "cancel") -> Order:
        """The order to train, of which each is sent what it lacks."""
        order = super().order(state, chosen, late)
        if self.compressor is None:
            return order
        lacks = state.memory[LACKS][chosen.cpu()]
        return replace(order, encoded=lacks.clamp(max=int(Size.of(state.params).nbytes)))

    def crossed(self, state: ServerState, replies: Replies, step: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What both ends have of a step [d], and what is remembered then. Who has answered lacked nothing before.

        Where nobody has, the model stays, and nothing is sent.
        """
        memory, own = state.memory, self.compressor
        if own is None or not len(replies):
            return step, {}
        chain = _chain(own, [tuple(shape.tolist()) for name, shape in memory.items() if name.startswith(f"{SHAPE} ")])
        kept = {name: value for name, value in memory.items() if name.startswith(PREFIX)}
        owner = torch.tensor([SERVER], device=step.device)
        sender = Sender(owner, Streams(int(memory[SEED])), state.round, kept)
        message = chain.apply({chain.usual: (step - memory[SENT]).unsqueeze(0)}, sender)
        sent = memory[SENT] + message.payload[chain.usual][0]
        lacks = memory[LACKS].index_fill(0, replies.clients.cpu(), 0) + int(message.nbytes)
        return sent, {**message.state, SENT: sent, LACKS: lacks}


def remembering(state: ServerState, memory: Mapping[str, Tensor]) -> ServerState:
    """The state with more, or other, vectors of the strategy's own."""
    return replace(state, memory={**state.memory, **memory})


def _chain(own: Transform, shapes: Sequence[tuple[int, ...]]) -> Chain:
    return Chain((own.bound(shapes),), "order_transforms")
