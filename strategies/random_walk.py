"""Token algorithms: a model walks along the links of a graph, and whoever has it takes a step; there is no server.

theta <- theta + b_n (p_i / mu_i) Delta_i at the n-th client i, n from 1, b_n = (n + 1)^(-b);  Delta_i = y_i - theta
P_ij = min(1 / k_i, mu_j / (mu_i k_j)) over k_i links of i, P_ii what is left: it is at j in a share mu_j of all steps
K_ij ~ P_ij (x_j / mu_j)^-alpha, x_j how often it has been at j: the self-repellent walk keeps mu, and where steps
fall off faster than its memory the variance of theta falls like 1 / alpha^2
x_j is 1 for all at first, plus visits; or with a < 1  x <- x + g_n (e_j - x), g_n = (n + 1)^(-a), from x = 1/N
A hop takes d + N floats, theta and x; 0 where it stays. Metropolis et al. 1953 (P); Doshi, Hu and Eun 2023 (K); Hu,
Doshi and Eun 2024 (SA-SRRW). alpha = 0 is random walk SGD: Johansson, Rabi and Johansson 2010.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import (
    All,
    Graph,
    InputError,
    Metrics,
    NonNegativeFloat,
    Order,
    ProblemView,
    Replies,
    Ring,
    ServerState,
    Share,
    Strategy,
    Streams,
    Weighting,
    Window,
    among,
    arrows,
    kind_named,
    observed,
    options,
)


@options
class RandomWalk(Strategy):
    """Needs the client `random_walk`, and all clients selected: the walk goes to whoever is there.

    It begins at client 0, and goes on from whoever has answered last. Links lead to those who are there alone, by whom
    P is made; where none does, and who has the model is away, others pass it on to the nearest who is there.
    """

    down: ClassVar[frozenset[str]] = frozenset({"params", "visits", "step-factor", "memory-rate"})
    up: ClassVar[frozenset[str]] = frozenset({"model", "visits"})
    aggregates: ClassVar[bool] = False

    graph: Graph = Ring()
    """Who is linked to whom, by the clients' numbers."""
    alpha: NonNegativeFloat = 5.0
    """How much the walk avoids where it has been; 0: not."""
    target: Literal["uniform", "examples", "degree"] = "uniform"
    """mu, where it is how often: everywhere alike, by examples, or by links, as the walk to any neighbour alike is."""
    weighting: Weighting = "examples"
    """p, what the clients' losses count in the objective, for which steps make up where that is not mu."""
    step_power: Share = 0.9
    """b, how fast steps fall; 0: the client's rate stays what it is."""
    memory_power: Annotated[float, Field(gt=0.5, le=1)] = 0.8
    """a, how fast the memory of visits does; 1: all count the same. Above b alpha is of no use, and it is refused."""

    def __post_init__(self) -> None:
        if self.step_power and self.alpha and self.memory_power > self.step_power:
            remedy = f"alpha is of no use where that is above step_power = {self.step_power}; lower it, or alpha to 0"
            raise InputError("memory_power", self.memory_power, remedy)

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: ARG002
        """Refuse a selection, which would take links away."""
        if at_once < population:
            remedy = f"only {at_once} of {population} clients are selected; select all, of whom one works at a time"
            raise InputError("graph", kind_named(self.graph), remedy)

    def init(self, problem: ProblemView) -> ServerState:
        """Nobody has been visited."""
        params, sizes = problem.initial(), problem.sizes.double()
        visits = params.new_full((problem.num_clients,), 1.0 if self.memory_power == 1.0 else 1.0 / len(sizes))
        at = torch.tensor(0)
        return ServerState(params, memory={"visits": visits, "sizes": sizes, "at": at}, trained=problem.trained)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with the graph, and a seed for the walk."""
        links = arrows(self.graph, len(state.memory["sizes"]), streams)
        seed = torch.tensor(streams.seed_of("walk"))
        return replace(state, memory={**state.memory, "links": links, "seed": seed})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Refuse those who come later; of others take in how many examples they have."""
        if problem.num_clients == len(state.memory["sizes"]):
            return replace(state, memory={**state.memory, "sizes": problem.sizes.double()})
        remedy = "it links those who are there when it begins, and others have come; take a strategy with a server"
        raise InputError("graph", kind_named(self.graph), remedy)

    def law(self, state: ServerState) -> Tensor:
        """mu, float64 [N]."""
        sizes = state.memory["sizes"]
        if self.target == "degree":
            degree = torch.bincount(state.memory["links"][0], minlength=len(sizes)).double()
            return degree / degree.sum()
        like = sizes if self.target == "examples" else torch.ones_like(sizes)
        return like / like.sum()

    def row(self, state: ServerState, there: Tensor) -> tuple[Tensor, Tensor]:
        """Where the walk may go next, int64 [k] ascending, and how likely, float64 [k]. there: who is, bool [N]."""
        at, mu = int(state.memory["at"]), self.law(state)
        known = there.clone()
        known[at] = True
        links = among(state.memory["links"], known.nonzero().flatten(), len(known))
        names = known.nonzero().flatten()
        degree = torch.bincount(links[0], minlength=len(names)).double()
        own = int((names < at).sum())
        others = links[1][links[0] == own]
        likely = torch.zeros(len(names), dtype=torch.float64)
        likely[others] = torch.minimum(1.0 / degree[own], mu[names[others]] / (mu[at] * degree[others]))
        likely[own] = (1.0 - likely.sum()).clamp(min=0.0) * there[at]
        visited = state.memory["visits"].cpu().double()[names] / mu[names]
        repelled = torch.softmax(likely.log() - self.alpha * visited.log(), dim=0)
        kept = likely > 0
        return names[kept], repelled[kept]

    def following(self, state: ServerState, there: Tensor) -> tuple[int, int]:
        """Who is next, and how many links away."""
        at, links = int(state.memory["at"]), state.memory["links"]
        names, likely = self.row(state, there)
        if len(names):
            drawn = Streams(int(state.memory["seed"])).uniform(
                "walk", torch.tensor([0]), (1,), turn=state.round, dtype=torch.float64
            )
            place = torch.searchsorted(likely.cumsum(0), drawn[0], right=True).clamp(max=len(names) - 1)
            return int(names[place]), int(names[place] != at)
        reached, hops = torch.zeros_like(there), 0
        reached[at] = True
        while not bool((reached & there).any()):
            reached[links[1][reached[links[0]]]] = True
            hops += 1
        return int((reached & there).nonzero()[0]), hops

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Have the next client take a step. Up counts what brings the model to it, as down does."""
        mu, sizes, visits = self.law(state), state.memory["sizes"], state.memory["visits"]
        there = torch.zeros(len(sizes), dtype=torch.bool)
        there[chosen] = True
        client, hops = self.following(state, there)
        p = float(sizes[client] / sizes.sum()) if self.weighting == "examples" else 1.0 / len(sizes)
        n = state.round + 2
        config = {
            "step-factor": float(n**-self.step_power * p / mu[client]),
            "memory-rate": 0.0 if self.memory_power == 1.0 else float(n**-self.memory_power),
        }
        payload = {"params": state.params, "visits": visits}
        nbytes = sum(vector.numel() * vector.element_size() for vector in payload.values())
        who = torch.tensor([client])
        return Order("train", who, payload, config, state.round, encoded=hops * nbytes, peers=hops), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take what the client has made of it; where it has not answered, the one before has it still."""
        later = replace(state, round=state.round + 1)
        if not len(replies):
            return later, observed(replies), True
        visits, model = replies.payload["visits"][0], replies.payload["model"][0]
        memory = {**state.memory, "visits": visits, "at": replies.clients[0]}
        shares = visits.cpu().double() / visits.sum(dtype=torch.float64).cpu()
        away = 0.5 * float((shares - self.law(state)).abs().sum())
        return replace(later, params=model, memory=memory), {**observed(replies), "off_target": away}, True
