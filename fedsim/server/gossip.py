"""What methods without a server share: each client has a model of its own, and sends to those whom a graph links it to.

A round is a step of everybody who is there. They train, send what they come to along the links between those of them
who answer, and each takes a weighted mean of its own and what it is sent. Who is away keeps what it has. Simulated is
that with one product of a matrix, [k, k], and all that was sent, [k, d]: no message is made for a link, but each is
counted, up where it is sent and down where it is next worked with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import kind_named, options
from fedsim.core.streams import Streams
from fedsim.exchange.messages import Order, Replies
from fedsim.exchange.windows import All, Window
from fedsim.server.graphs import Graph, Ring, among, arrows, metropolis, spread_of
from fedsim.server.strategy import Metrics, ProblemView, ServerState, Strategy, observed

Rows = Mapping[str, Tensor]


@options
class Gossip(Strategy):
    """What is judged as the model for all is the mean of all clients' models, which nobody has."""

    aggregates: ClassVar[bool] = False
    directed: ClassVar[bool] = False
    """Whether links may lead one way."""

    graph: Graph = Ring()
    """Who is linked to whom, by the clients' numbers."""

    def matrix(self, links: Tensor, count: int) -> Tensor:
        """How much k = count clients count for each other, whom links [2, e] lead from and to: [k, k]."""
        return metropolis(links, count)

    @abstractmethod
    def begin(self, problem: ProblemView) -> Rows:
        """What clients have before the first round, [N, ...] by name; among it their `models`, [N, d]."""

    @abstractmethod
    def step(self, before: Rows, replies: Replies, weights: Tensor) -> Rows:
        """What k clients have after a round, [k, ...] by the names of `begin`. before: as it was. weights: [k, k]."""

    def mean(self, rows: Rows) -> Tensor:
        """The mean of all clients' models, [d]."""
        return rows["models"].mean(dim=0)

    def models(self, rows: Rows) -> Tensor:
        """Those by which clients are judged, [N, d]."""
        return rows["models"]

    def init(self, problem: ProblemView) -> ServerState:
        """Everybody has the problem's start."""
        rows, nothing = self.begin(problem), torch.zeros(problem.num_clients, dtype=torch.int64)
        return ServerState(problem.initial(), memory={**rows, "received": nothing}, trained=problem.trained)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with the graph. InputError: it is not connected, or not of so many clients."""
        links = arrows(self.graph, len(state.memory["received"]), streams, directed=self.directed)
        return replace(state, memory={**state.memory, "links": links})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Refuse those who come later: nobody has said whom they are linked to."""
        if problem.num_clients == len(state.memory["received"]):
            return state
        remedy = "it links those who are there when it begins, and others have come; take a strategy with a server"
        raise InputError("graph", kind_named(self.graph), remedy)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Have those who are there train and send to each other; wait for everybody.

        Down count the bytes that each was sent when it last mixed.
        """
        memory, clients = state.memory, len(state.memory["received"])
        links = among(memory["links"], chosen, clients)
        order = Order(
            "train",
            chosen,
            {name: memory[name] for name in self.down},
            round=state.round,
            encoded=memory["received"][chosen],
            peers=torch.bincount(links[0], minlength=len(chosen)),
        )
        return order, All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Mix what those who answer have sent along the links between them."""
        memory, who = dict(state.memory), replies.clients
        links, there = among(memory["links"], who, len(memory["received"])), who.to(state.params.device)
        if len(replies):
            before = {name: memory[name][there] for name in self.down}
            after = self.step(before, replies, self.matrix(links, len(who)))
            memory |= {name: memory[name].index_copy(0, there, rows) for name, rows in after.items()}
        got = torch.zeros_like(who).index_add_(0, links[1], replies.nbytes[links[0]])
        memory["received"] = state.memory["received"].index_copy(0, who, got)
        mean = self.mean(memory)
        later = replace(state, params=mean, round=state.round + 1, memory=memory)
        return later, {**observed(replies), "consensus": spread_of(self.models(memory), mean)}, True
