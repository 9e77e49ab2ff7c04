"""FedCBO: agents with models of their own, drawn to those of others that do well on their examples; groups form.

There is no global model. Round: (1) agents train their models theta_i and send them; (2) each is sent the models A_i of
M peers, measures their losses, moves towards their consensus (see the client `fedcbo`) and sends what it measured.
P_ij <- P_ij + L_i(theta_i) - L_i(theta_j), j in A_i, from P = 1
A_i: of all that have sent a model, floor(epsilon M) at random and the others with the largest P_ij, ties by number;
all at random as long as P_i is as it began. epsilon falls by `decay` a round, from `exploration` to `least`.
Downlink M d floats a client (and d when it begins), uplink d + M + 1 floats; M + 1 evaluations of all of its examples.
Carrillo, Garcia Trillos, Li and Zhu 2024; the server only relays, and keeps P where agents would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.server import (
    All,
    Metrics,
    NonNegativeFloat,
    Order,
    PositiveInt,
    ProblemView,
    Replies,
    ServerState,
    Share,
    Strategy,
    Streams,
    Window,
    extended,
    observed,
    options,
)


@options
class FedCBO(Strategy):
    """Needs the client `fedcbo`.

    What is judged as the global model is the mean of the models that the round's agents have sent, which means little
    where there are groups; the metric `own_loss` is the agents' mean loss, each with its own model before it moves to
    the consensus. The server holds N models and N^2 scores.
    """

    down: ClassVar[frozenset[str]] = frozenset({"params", "models", "selection"})
    up: ClassVar[frozenset[str]] = frozenset({"model", "losses"})

    peers: PositiveInt = 20
    """M, models that an agent is sent; where there are fewer, all of them."""
    exploration: Share = 0.5
    """epsilon in the first round, the share of peers that are drawn at random."""
    decay: NonNegativeFloat = 0.01
    """By how much epsilon falls in a round."""
    least: Share = 0.1
    """The least epsilon."""

    def init(self, problem: ProblemView) -> ServerState:
        """No models yet, and all scores 1."""
        params, count = problem.initial(), problem.num_clients
        memory = {
            "start": params,
            "models": params.new_zeros((count, len(params))),
            "known": torch.zeros(count, dtype=torch.bool, device=params.device),
            "scores": torch.ones((count, count), dtype=torch.float64, device=params.device),
        }
        return ServerState(params, memory=memory)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed for the choice of peers."""
        seed = torch.tensor(streams.seed_of("fedcbo"))
        return replace(state, memory={**state.memory, "seed": seed})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Those that come have sent no model, and all scores of theirs, and of others with them, are 1."""
        memory, count = dict(state.memory), problem.num_clients
        for name, value in (("models", 0.0), ("known", False)):
            memory[name] = extended(memory[name], count, value)
        later = count - len(memory["scores"])
        memory["scores"] = torch.nn.functional.pad(memory["scores"], (0, later, 0, later), value=1.0)
        return replace(state, memory=memory)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Have them train, new ones from the model that all begin with; then send each the models of its peers."""
        memory, start = state.memory, state.memory["start"]
        vector = start.numel() * start.element_size()
        if state.phase == 0:
            new = ~memory["known"].cpu()[chosen]
            return Order("train", chosen, {"params": start}, round=state.round, encoded=vector * new.long()), All()
        peers = self.chosen_peers(state, chosen.to(start.device))
        selection = peers.new_zeros((len(memory["known"]), peers.shape[1]))
        selection[chosen.to(start.device)] = peers
        payload = {"models": memory["models"], "selection": selection}
        return Order("mix", chosen, payload, round=state.round, encoded=vector * peers.shape[1]), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take in the models; then the scores."""
        memory = dict(state.memory)
        who = replies.clients.to(state.params.device)
        if state.phase == 0 and len(replies):
            memory["models"] = memory["models"].index_copy(0, who, replies.payload["model"])
            memory["known"] = memory["known"].index_fill(0, who, True)
            mean = replies.combine(replies.weights("uniform"), name="model")
            return replace(state, params=mean, phase=1, memory=memory), observed(replies), False
        metrics = dict[str, float]()
        if len(replies):
            losses = replies.payload["losses"].double()
            scores = memory["scores"].clone()
            scores[who.unsqueeze(1), replies.orders[0].payload["selection"][who]] += losses[:, :1] - losses[:, 1:]
            memory["scores"] = scores
            metrics["own_loss"] = float(losses[:, 0].mean())
        return replace(state, phase=0, round=state.round + 1, memory=memory), metrics, True

    def chosen_peers(self, state: ServerState, agents: Tensor) -> Tensor:
        """The peers of these agents [C], who have sent models: int64 [C, min(M, models - 1)]."""
        known, scores = state.memory["known"], state.memory["scores"][agents]
        count = min(self.peers, max(0, int(known.sum()) - 1))
        allowed = known.expand(len(agents), -1).scatter(1, agents.unsqueeze(1), False)
        epsilon = max(self.least, self.exploration - self.decay * state.round)
        explored = torch.where((scores == 1.0).all(dim=1), count, int(epsilon * count))
        order = scores.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)
        streams = Streams(int(state.memory["seed"]))
        place = streams.bits("peers", agents, scores.shape[1], turn=state.round)
        place = place.masked_fill(rank < (count - explored).unsqueeze(1), -1).masked_fill(~allowed, 2**32)
        return place.argsort(dim=1, stable=True)[:, :count]
