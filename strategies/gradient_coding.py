"""Gradient coding: workers share data, each sends a combination of sums of gradients, and the late are done without.

theta <- theta - optimizer(g),  g = sum_i a_i l_i = grad f(theta),  l_i = sum_j B_ij g_j,  a' B = 1'
g_j is the share of chunk j in the gradient of the mean loss of all examples; a is 0 of those who are late. A round ends
after 1 + mu times the fastest one's time if the code can do without who is late then, and else with all.
With the codes sr_sgc and m_sgc, g is known T rounds later, and T + 1 models are trained in turn, each by every T + 1st
round; what is judged is the one whose gradient was known last.
Uplink d + 1 floats for each slot of a worker, downlink T + 1 models and the worker's tasks. Tandon et al. 2017;
Krishnan et al. 2023.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.coding import Scheme, Work
from fedsim.server import (
    Code,
    InputError,
    Metrics,
    OfARound,
    Order,
    ProblemView,
    Replies,
    ServerState,
    ServerStep,
    StalledError,
    Strategy,
    Streams,
    Window,
    enough,
    filled,
    hold_room,
    kind_named,
    options,
    scheme_of,
    tasks,
)

Rows = dict[str, Tensor]
IN_VAIN = 100
"""Rounds in a row without a gradient that end a run."""


@options
class GradientCoding(ServerStep, Strategy):
    """Needs the client `gradient_coding`, and all clients selected. Clients go over each other's examples."""

    down: ClassVar[frozenset[str]] = frozenset({"job-models", "ages", "chunks", "factors", "ends"})
    up: ClassVar[frozenset[str]] = frozenset({"results", "losses"})
    aggregates: ClassVar[bool] = False

    code: Code = OfARound()
    """How work is shared."""
    patience: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """mu: how many times the fastest one's time the server waits on, before it looks who is late."""

    def check(self, at_once: int, population: int, steady: bool) -> None:  # noqa: ARG002
        """Refuse a selection, and a code that so many workers cannot have."""
        if at_once < population:
            remedy = f"only {at_once} of {population} clients are selected; select all, of whom it can do without some"
            raise InputError("code", kind_named(self.code), remedy)
        scheme_of(self.code, population, 0)

    def init(self, problem: ProblemView) -> ServerState:
        """Nothing has come."""
        state = super().init(problem)
        return replace(state, memory={"sizes": problem.sizes.cpu(), "lost": torch.tensor(0)})

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The state with a seed for the code, and room for what comes of the jobs that are on their way."""
        seed = streams.seed_of("code")
        memory = {**state.memory, "seed": torch.tensor(seed)}
        scheme = scheme_of(self.code, len(memory["sizes"]), seed)
        memory |= {"came": torch.from_numpy(scheme.nothing()), "late": torch.zeros(0, scheme.workers, dtype=torch.bool)}
        hold_room(scheme, state.params)
        if scheme.delay:
            room = state.params.new_zeros(*scheme.nothing().shape, len(state.params) + 1)
            begun = {"params": state.params, **state.optimizer}
            each = {f"jobs/{name}": torch.stack([one] * (scheme.delay + 1)) for name, one in begun.items()}
            memory |= {"results": room, **each}
        return replace(state, memory=memory)

    def resize(self, state: ServerState, problem: ProblemView) -> ServerState:
        """Refuse those who come later; of others take in how many examples they have."""
        if problem.num_clients == len(state.memory["sizes"]):
            return replace(state, memory={**state.memory, "sizes": problem.sizes.cpu()})
        remedy = "it shares out work among those who are there when it begins, and others have come; take fedavg"
        raise InputError("code", kind_named(self.code), remedy)

    def begun(self, state: ServerState, scheme: Scheme) -> Rows:
        """What the jobs on their way began from, the model and the optimizer's state, [T + 1, ...] by name."""
        now, row = {"params": state.params, **state.optimizer}, torch.tensor([state.round % (scheme.delay + 1)])
        if not scheme.delay:
            return {name: one.unsqueeze(0) for name, one in now.items()}
        return {
            name: state.memory[f"jobs/{name}"].index_copy(0, row.to(one.device), one.unsqueeze(0))
            for name, one in now.items()
        }

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send models and tasks; wait for as many as are needed."""
        scheme, work = self.now(state)
        ages = (state.round - torch.arange(scheme.delay + 1)) % (scheme.delay + 1)
        models = self.begun(state, scheme)["params"][ages.to(state.params.device)]
        told = tasks(scheme, work, int(state.memory["sizes"].sum()), models.device)
        shared = sum(tensor.numel() * tensor.element_size() for tensor in (models, told["ends"]))
        own = sum(tensor[0].numel() * tensor.element_size() for name, tensor in told.items() if name != "ends")
        order = Order("train", chosen, {"job-models": models, **told}, round=state.round, encoded=shared + own)
        needs = scheme.needs(list(state.memory["late"].numpy()))
        return order, enough(needs, chosen, self.patience)

    def now(self, state: ServerState) -> tuple[Scheme, Work]:
        """The scheme, and what is done in this round."""
        memory = state.memory
        scheme = scheme_of(self.code, len(memory["sizes"]), int(memory["seed"]))
        return scheme, scheme.work(state.round, memory["came"].numpy()).within(state.round)

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take in what has come, and step along the gradient of the job that is due; where that is not known, stay."""
        (scheme, work), memory, number = self.now(state), dict(state.memory), state.round
        late = np.ones(scheme.workers, dtype=bool)
        late[replies.clients.numpy()] = False
        came = scheme.arrived(memory["came"].numpy(), number, work, late)
        before = memory["results"] if scheme.delay else state.params.new_zeros(*came.shape, len(state.params) + 1)
        held = filled(before, number, work, replies)
        begun = self.begun(state, scheme)
        looks_back = torch.cat((memory["late"], torch.from_numpy(late).unsqueeze(0)))
        memory["late"] = looks_back[len(looks_back) - min(scheme.looks_back, len(looks_back)) :]
        due = (number - scheme.delay) % (scheme.delay + 1)
        factors = scheme.decode(came[due])
        came[due] = False
        memory["came"] = torch.from_numpy(came)
        if scheme.delay:
            memory |= {"results": held, **{f"jobs/{name}": rows for name, rows in begun.items()}}
        metrics: Metrics = {"load": float(scheme.done(work)[~late].sum())}
        if number < scheme.delay:
            return replace(state, round=number + 1, memory=memory), metrics, True
        job = {name: rows[due] for name, rows in begun.items()}
        begun_from = replace(state, params=job.pop("params"), optimizer=job, memory=memory)
        memory["lost"] = torch.tensor(0) if factors is not None else memory["lost"] + 1
        if int(memory["lost"]) == IN_VAIN:
            why = "more workers are gone than the code can do without"
            raise StalledError(f"no gradient was known in {IN_VAIN} rounds in a row: {why}")
        if factors is None:
            return replace(begun_from, round=number + 1), {**metrics, "undecoded": 1.0}, True
        weights = torch.from_numpy(factors).to(held.device, held.dtype).flatten()
        gradient = weights @ held[due].flatten(0, 1)
        later = self.advance(begun_from, replies, -gradient[:-1])
        return later, {**metrics, "train_loss": float(gradient[-1]), "undecoded": 0.0}, True
