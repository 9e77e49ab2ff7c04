"""The genetic algorithm of deep neuroevolution, with clients as evaluators: networks cross as chains of seeds.

theta_j = theta_parent + p e(s_j): the parent is drawn from the T best, the gene s_j is new; no crossover
F_j = sum_i w_i f_i(theta_j), lower being better, over the clients of a round that were asked about network j
A generation is two rounds. Population: P networks are ranked by F, ties by number. Validation: the elite so far and the
best of the rest, `candidates` in all, are measured by the next round's clients on all of their examples, and the best
is the elite, the global model. The elite is no member of the next population; the parents are the T best if it is one
of them, else it and the T - 1 best.
Uplink 4 P bytes a client, and 4 a candidate. Downlink 8 P for the first population, then 12 P, a new gene and the place
of its parent each, and 8 + 12 k bytes for each parent, of k genes, to a client that was not asked about the generation
before; a candidate is 4 bytes, or its chain. theta_0 is random: weights by e(s_0) spread / sqrt(fan-in), biases 0.
Such et al. 2017, whose published code this follows; networks that failed rank last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import (
    All,
    InputError,
    Metrics,
    NonNegativeInt,
    Order,
    PositiveFloat,
    PositiveInt,
    ProblemView,
    Replies,
    ServerState,
    Strategy,
    Streams,
    Weighting,
    Window,
    extended,
    observed,
    options,
)
from fedsim.zeroth_order import FIRST, GENE, SEED, Chains, Genome, first_scale

PLACE = 4
"""Bytes of the number of a network that a client knows."""


@options
class Genetic(Strategy):
    """Needs the client `genetic`.

    The state is chains: those of the parents, the population's places among them, and the elite's. Without enough
    answers a population, or its candidates, are asked about once more in the next round.
    """

    down: ClassVar[frozenset[str]] = frozenset(
        {"seed", "start", "scale", "seeds", "powers", "lengths"}
        | {"parents", "genes", "power", "split", "assigned", "repeats"}
    )
    up: ClassVar[frozenset[str]] = frozenset({"fitness"})

    population: Annotated[int, Field(ge=2)] = 100
    """P, networks of a generation."""
    truncation: PositiveInt = 20
    """T, how many of them are parents of the next."""
    power: PositiveFloat = 0.05
    """p, the standard deviation of a mutation."""
    spread: PositiveFloat = 1.0
    """How much first networks vary: their weights by this over the root of the fan-in, what is no model about its start
    by this.
    """
    candidates: NonNegativeInt = 10
    """Networks that are measured once more for the elite, the last one among them; 0: the best of a population is the
    elite, and a generation is one round.
    """
    repeats: PositiveInt = 1
    """How often a candidate is measured by each client; of use where values have noise."""
    evaluators: PositiveInt | None = None
    """Clients of a round that are asked about a network; not given: all of them. Fewer share the work."""
    quorum: PositiveInt = 1
    """A network that fewer clients have answered for ranks last."""
    weighting: Weighting = "examples"
    """w_i by the clients' examples, or uniform."""

    def __post_init__(self) -> None:
        for name in ("truncation", "candidates"):
            if getattr(self, name) > self.population:
                remedy = f"at most as many as the population, which is {self.population}"
                raise InputError(name, getattr(self, name), remedy)
        if self.candidates == 1:
            raise InputError("candidates", 1, "it would be the same elite for ever; take 2 or more, or 0")
        if self.evaluators is not None and self.quorum > self.evaluators:
            raise InputError("quorum", self.quorum, f"at most as many as evaluators, {self.evaluators}")

    @property
    def aggregates(self) -> bool:
        """Where all clients are asked about everything; else each network has answers of its own."""
        return self.evaluators is None

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: ARG002
        """Refuse a quorum that never comes."""
        if self.quorum > at_once:
            raise InputError("quorum", self.quorum, f"{at_once} clients are asked at a time; lower it, or select more")

    def init(self, problem: ProblemView) -> ServerState:
        """No parents, a first population, and nobody who was asked."""
        params = problem.initial()
        start, scale = first_scale(problem.layout, self.spread, params)
        none = torch.zeros(0, dtype=torch.int64, device=params.device)
        memory = {
            **_chains(none, "parents"),
            **_chains(none, "candidates"),
            **_chains(none, "elite"),
            "start": start,
            "scale": scale,
            "box": params.new_tensor([] if problem.bounds is None else list(problem.bounds)),
            "places": none,
            "genes": torch.arange(self.population, device=params.device),
            "generation": torch.tensor(0),
            "held": torch.full((problem.num_clients,), -1),
            "joined": torch.zeros(problem.num_clients, dtype=torch.bool),
        }
        return ServerState(params, memory=memory)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with the seed under which genes are named."""
        seed = torch.tensor([streams.seed_of("genetic")], device=state.params.device)
        return replace(state, memory={**state.memory, "seed": seed})

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Those that come have been sent nothing."""
        memory, count = state.memory, problem.num_clients
        held, joined = extended(memory["held"], count, -1), extended(memory["joined"], count, False)
        return replace(state, memory={**memory, "held": held, "joined": joined})

    def forget(self, state: ServerState, clients: Tensor) -> ServerState:
        """They have to be sent everything again."""
        held, joined = state.memory["held"].clone(), state.memory["joined"].clone()
        held[clients], joined[clients] = -1, False
        return replace(state, memory={**state.memory, "held": held, "joined": joined})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the population, or the candidates; wait for everybody."""
        memory, generation = state.memory, int(state.memory["generation"])
        held, joined = (memory[name][chosen.cpu()] for name in ("held", "joined"))
        payload = {name: memory[name] for name in ("seed", "start", "scale")}
        candidates, parents, genes = Chains.of(memory, "candidates."), Chains.of(memory, "parents."), memory["genes"]
        nbytes = SEED * (~joined).long()
        if len(candidates):
            nbytes += torch.where(held == generation, PLACE * len(candidates), int(candidates.nbytes.sum()))
            payload |= candidates.named()
            return Order("validate", chosen, payload, {"repeats": self.repeats}, state.round, encoded=nbytes), All()
        nbytes += torch.where(held >= generation - 1, 0, int(parents.nbytes.sum()))
        nbytes += len(genes) * (GENE if generation else FIRST)
        payload |= {**parents.named(), "parents": memory["places"], "genes": genes}
        if self.evaluators is not None:
            payload["assigned"] = self._assigned(state, chosen, self.evaluators)
            nbytes += PLACE * payload["assigned"].shape[1]
        config = {"power": self.power, "split": self.evaluators is not None}
        return Order("evaluate", chosen, payload, config, state.round, encoded=nbytes), All()

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Rank the population; or find the elite, and breed."""
        memory, heard = dict(state.memory), replies.clients.cpu()
        candidates, elite = Chains.of(memory, "candidates."), Chains.of(memory, "elite.")
        memory["joined"] = memory["joined"].index_fill(0, heard, True)
        if not len(candidates):
            memory["held"] = memory["held"].index_fill(0, heard, int(memory["generation"]))
        values = self._fitness(replies, self.population if not len(candidates) else len(candidates))
        later = replace(state, round=state.round + 1, memory=memory)
        if not bool(torch.isfinite(values).any()):
            return later, {}, True
        metrics = {**observed(replies), "lowest_value": float(values.min()), "generation": int(memory["generation"])}
        if len(candidates):
            elite = candidates[values.argmin().view(1)]
        else:
            best, chains = values.argsort(stable=True), self._population(memory)
            memory |= chains[best[: self.truncation]].named("parents.")
            if self.candidates:
                rivals = elite.and_then(chains[best[: self.candidates - len(elite)]])
                return replace(later, memory=memory | rivals.named("candidates.")), metrics, True
            elite = chains[best[:1]]
        model, memory = self._bred(memory, elite)
        metrics["genes"] = int(elite.lengths) - 1
        return replace(later, params=model, memory=memory), metrics, True

    def _fitness(self, replies: Replies, count: int) -> Tensor:
        """F of each network, [count]; infinite where too few have answered."""
        values, weights = replies.payload.get("fitness"), replies.examples.double()
        if values is None or len(replies) < self.quorum:
            return torch.full((count,), math.inf)
        if "assigned" not in replies.orders[0].payload:
            return replies.combine(replies.weights(self.weighting), name="fitness")
        own = torch.cat([replies.orders[0].payload["assigned"][client] for client in replies.clients])
        each = (weights if self.weighting == "examples" else torch.ones_like(weights)).to(values.device)
        each = each.repeat_interleave(values.shape[1])
        shares = torch.bincount(own, each, count)
        answers = torch.bincount(own, minlength=count)
        mean = torch.bincount(own, each * values.double().flatten(), count) / shares
        return torch.where(answers >= self.quorum, mean, math.inf)

    def _population(self, memory: Mapping[str, Tensor]) -> Chains:
        """The networks that the round is about."""
        if not int(memory["generation"]):
            return Chains.begun(memory["genes"])
        return Chains.of(memory, "parents.").children(memory["places"], memory["genes"], self.power)

    def _bred(self, memory: dict[str, Tensor], elite: Chains) -> tuple[Tensor, dict[str, Tensor]]:
        """The elite's model, and what is remembered with it and the next population; parents: the best so far."""
        parents, generation = Chains.of(memory, "parents."), memory["generation"] + 1
        if not bool(torch.isin(elite.last, parents.last)):
            parents = elite.and_then(parents[torch.arange(len(parents) - 1, device=elite.seeds.device)])
        numbers = torch.arange(self.population, device=elite.seeds.device)
        places = Streams(int(memory["seed"])).integers("parents", numbers, (), len(parents), turn=int(generation))
        memory |= {**parents.named("parents."), **elite.named("elite."), "places": places, "generation": generation}
        memory |= {"genes": int(generation) * self.population + numbers, **_chains(numbers[:0], "candidates")}
        genome = Genome(memory["seed"], memory["start"], memory["scale"])
        model = genome.rebuilt(elite)[0]
        return (model.clamp(*memory["box"].tolist()) if len(memory["box"]) else model), memory

    def _assigned(self, state: ServerState, chosen: Tensor, evaluators: int) -> Tensor:
        """Which networks each client looks at, int64 [N, n], such that each network has `evaluators` at least."""
        streams, device = Streams(int(state.memory["seed"])), state.params.device
        each = min(self.population, -(-self.population * evaluators // max(1, len(chosen))))
        (order,) = streams.permutation("assigned", torch.zeros(1, dtype=torch.int64), self.population, turn=state.round)
        table = torch.zeros(len(state.memory["held"]), each, dtype=torch.int64)
        places = torch.arange(len(chosen) * each).view(-1, each) % self.population
        table[chosen.cpu().sort().values] = order[places]
        return table.to(device)


def _chains(seeds: Tensor, name: str) -> dict[str, Tensor]:
    """Chains of one seed each, int64 [n], by name."""
    return Chains.begun(seeds).named(f"{name}.")
