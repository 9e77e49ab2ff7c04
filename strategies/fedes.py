"""FedES: evolution strategies, in which clients send losses and nothing else.

g = 1/(n sigma) sum_j s_j e_j, with s_j the mean over clients of f_i(x + sigma e_j), or its centred rank
(rank / (n - 1) - 1/2, which equal ones share); antithetic: e_(j + n/2) = -e_j
x <- x + optimizer(-lr g - decay x), by default x <- x - lr g, with server_optimizer and server_weight_decay
Uplink n floats a client. Downlink d floats, the model; or the n mean losses of each round since it last took part, that
one included, and the model once. The seed, of 8 bytes, is sent once. Salimans et al. 2017; Lan 2023. Without the seed
losses are of no use. Another aggregator takes the place of the mean over clients. In the published code of Salimans et
al. there is no 1/sigma, the decay is lr times theirs, 0.005, and equal losses are ranked by their places, so that of
losses that are all the same the model moves: not here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import (
    InputError,
    Metrics,
    Order,
    PositiveFloat,
    ProblemView,
    Replies,
    ServerState,
    ServerStep,
    Streams,
    Window,
    options,
)
from fedsim.zeroth_order import DRAWS, SEED, Population, ReplicaServer, of_losses, population_keys


@options
class FedES(ServerStep, ReplicaServer):
    """Needs the client `fedes`."""

    purpose: ClassVar[str] = "fedes"
    columns: ClassVar[tuple[str, ...]] = ("losses",)
    down: ClassVar[frozenset[str]] = frozenset(
        {"params", "seed", "rounds", "losses", "from", "at", "lr", "directions"}
        | {"population", "sigma", "antithetic", "ranks", "orthogonal"}
    )
    up: ClassVar[frozenset[str]] = frozenset({"losses"})

    population: Annotated[int, Field(ge=2, le=DRAWS)] = 50
    """n, perturbed models of a round; an even number if antithetic."""
    sigma: PositiveFloat = 0.02
    """The radius: by how much parameters are perturbed."""
    antithetic: bool = True
    """Perturbations come in pairs, e_(j + n/2) = -e_j."""
    ranks: bool = True
    """s_j is the centred rank of a mean loss instead of the loss."""
    orthogonal: bool = False
    """Gaussian directions are orthogonal to each other, d of them at a time, and of the lengths that they had."""
    downlink: Literal["model", "losses"] = "model"
    """What brings clients up to date: the model, or the mean losses of the rounds that they lack."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.antithetic and self.population % 2:
            raise InputError("population", self.population, "antithetic pairs make an even number")
        if self.orthogonal and self.directions != "gaussian":
            raise InputError("orthogonal", True, "is of gaussian directions; remove it, or directions")
        if self.downlink == "losses" and self.apart:
            remedy = "clients who are sent losses repeat plain steps along drawn directions; have the model sent"
            raise InputError(self.apart[0], getattr(self, self.apart[0]), remedy)
        if self.downlink == "model":
            if self.join != "model":
                raise InputError("join", self.join, "the model is sent every round; remove it, or downlink = 'losses'")
            if self.history is not None:
                raise InputError("history", self.history, "the model is sent every round; remove it")

    @cached_property
    def apart(self) -> list[str]:
        """Options by which the server's step is more than a sum of scaled directions."""
        plain = {"orthogonal": False, "server_lr": 1.0, "server_weight_decay": 0.0}
        own = [name for name, value in plain.items() if getattr(self, name) != value]
        return own + (["server_optimizer"] if self.stepping != ServerStep().stepping else [])

    @property
    def shape(self) -> Population:
        """How losses weigh the perturbations."""
        return Population(self.population, self.sigma, self.antithetic, self.ranks, self.orthogonal)

    def init(self, problem: ProblemView) -> ServerState:
        """An empty log, and nobody has joined."""
        begun = self.begin(problem, {"losses": problem.initial().new_zeros(0, self.population)})
        return replace(begun, optimizer=super().init(problem).optimizer, trained=problem.trained)

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send the model, or what the clients lack of the log; wait for everybody."""
        sizes = torch.full((len(state.memory["rounds"]),), self.population * state.params.element_size())
        payload, config = {"seed": state.memory["seed"]}, dict(vars(self.shape))
        config["population"] = config.pop("size")
        return self.order(state, chosen, payload, config, sizes, joining=SEED, again=self.downlink == "model")

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Take the step that the mean losses tell."""
        row = {
            "rounds": self.in_round(state, 1),
            "losses": replies.combine(replies.weights("uniform"), name="losses").unsqueeze(0),
        }
        nothing = {name: column[:0] for name, column in row.items()}
        if not len(replies):
            row = nothing
        seed, params, optimizer = state.memory["seed"], state.params.clone(), state.optimizer
        if self.orthogonal and len(replies):
            keys = population_keys(row["rounds"], self.shape.directions)
            vectors = self.shape.drawn(self.directions, Streams(int(seed)), keys, params)
            delta = -self.lr * (self.shape.scalars(row["losses"])[0].to(vectors) @ vectors)
        else:
            start = torch.zeros_like(params) if self.apart else params
            delta = of_losses(seed, row, self.shape).apply_(start, self.lr, self.directions)
        if self.apart and len(replies):
            params, optimizer = self.moved(state, delta)
        delta = params - state.params if not self.apart else delta
        logged = nothing if self.downlink == "model" else row
        later = replace(self.proceed(state, replies, params, logged), optimizer=optimizer, trained=state.trained)
        told = {name: value for name, value in self.seen(state, replies, delta).items() if math.isfinite(value)}
        return later, told, True
