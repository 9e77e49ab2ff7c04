"""IFCA: k models for all, of which each client trains the one that costs it least on its own examples.

z_i = argmin_j f_i(theta_j);  theta_j <- theta_j + eta * sum_(i: z_i = j) w_i Delta_i;  whom nobody chooses stays
averaging = "model": w_i = p_i over those with z_i = j (option II); "gradient": over all who answer, of one step on all
examples (option I). Downlink k d floats a client, uplink d floats and a byte. Ghosh, Chung, Yin and Ramchandran 2020,
"An Efficient Framework for Clustered Federated Learning", algorithm 1, with the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import (
    Averaging,
    Config,
    InputError,
    Metrics,
    NonNegativeFloat,
    ProblemView,
    Replies,
    ServerState,
    Streams,
    Weighting,
    options,
)


@options
class IFCA(Averaging):
    """Needs the client `ifca`, of which each is judged by the model that it chooses; with one cluster it is FedAvg.

    The first model begins as the problem does. The entries of each parameter of another are in an order of its own,
    which is another draw of any initialisation that draws them alike, as PyTorch's does. Each model has the numbers of
    the server's optimizer for itself.
    """

    up: ClassVar[frozenset[str]] = frozenset({"delta", "cluster"})

    clusters: Annotated[int, Field(ge=1, le=256)] = 2
    """k, how many models there are."""
    averaging: Literal["model", "gradient"] = "model"
    """Whether a model moves by the mean of its clients' changes, or, where each takes one step on all of its examples,
    by their sum over how many answer in all.
    """
    spread: NonNegativeFloat = 0.0
    """Begin the other models at the first with Gaussian noise of so many times a parameter's root mean square (1 where
    it is zero), as a start that has been trained needs; 0: with its entries in another order.
    """
    weighting: Weighting = "uniform"

    @property
    def down(self) -> frozenset[str]:
        """All models, and the name of `config`."""
        return super().down | {"other-models"}

    @property
    def for_all(self) -> bool:
        """Whether there is one model."""
        return self.clusters == 1

    @property
    def in_parts(self) -> bool:
        """Whether there are several, each of which has its own clients."""
        return self.clusters > 1

    def init(self, problem: ProblemView) -> ServerState:
        """All models alike, and how long each parameter is that is trained."""
        state = super().init(problem)
        optimizer = {name: torch.stack([kept] * self.clusters) for name, kept in state.optimizer.items()}
        layout = problem.layout
        memory = {
            "others": state.params.repeat(self.clusters - 1, 1),
            "lengths": torch.tensor(layout.sizes[: layout.trained]),
        }
        return replace(state, optimizer=optimizer, memory=memory)

    def seeded(self, state: ServerState, streams: Streams) -> ServerState:
        """The models apart. InputError: two of them are alike."""
        others, begin = state.memory["others"].clone(), 0
        owners = torch.arange(1, self.clusters, device=others.device)
        for place, length in enumerate(state.memory["lengths"].tolist()):
            part = others[:, begin : begin + length]
            if self.spread:
                size = float(state.params[begin : begin + length].square().mean().sqrt()) or 1.0
                noise = streams.normal("clusters", owners, (length,), step=place, dtype=part.dtype)
                part.add_(noise, alpha=self.spread * size)
            else:
                part.copy_(part.gather(1, streams.permutation("clusters", owners, length, step=place)))
            begin += length
        models = [state.params, *others]
        if any(torch.equal(one, other) for one, other in combinations(models, 2)):
            remedy = "two models begin alike, as where parameters are zero, and would stay so; give a spread, as 0.1"
            raise InputError("strategy.spread", self.spread, remedy)
        return replace(state, memory={**state.memory, "others": others})

    def config(self) -> Config:
        """Whether one step is wanted."""
        return {"one-step": True} if self.averaging == "gradient" else {}

    def message(self, state: ServerState) -> Mapping[str, Tensor]:
        """All models."""
        return {"params": state.params, "other-models": state.memory["others"]}

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Move each model along the changes of those who have chosen it; the others stay, and so do their momenta."""
        models = torch.cat((state.params.unsqueeze(0), state.memory["others"]))
        changes, optimizer = torch.zeros_like(models), {name: kept.clone() for name, kept in state.optimizer.items()}
        chosen, weights = replies.payload["cluster"][:, 0].cpu(), replies.weights(self.weighting)
        counts = torch.bincount(chosen, minlength=self.clusters)[: self.clusters].tolist()
        for cluster in (number for number, count in enumerate(counts) if count):
            own = replies.where(chosen == cluster)
            shares = own.weights(self.weighting) if self.averaging == "model" else weights[chosen == cluster]
            changes[cluster] = own.combine(shares)
            kept = {name: each[cluster] for name, each in optimizer.items()}
            before = replace(state, params=models[cluster], optimizer=kept)
            models[cluster], remembered = self.moved(before, changes[cluster])
            for name, now in remembered.items():
                optimizer[name][cluster] = now
        memory = {**state.memory, "others": models[1:]}
        following = replace(state, params=models[0], round=state.round + 1, optimizer=optimizer, memory=memory)
        metrics = dict(self.seen(state, replies, changes.T))
        if len(replies):
            metrics["clusters_used"] = sum(count > 0 for count in counts)
            metrics |= {f"cluster_{number}": count for number, count in enumerate(counts)}
        return following, metrics, True
