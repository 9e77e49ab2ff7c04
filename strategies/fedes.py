"""FedES: evolution strategies, in which clients send losses and nothing else.

x <- x - lr/(n sigma) sum_j s_j e_j, with s_j the mean over clients of f_i(x + sigma e_j), or its centred rank
(rank / (n - 1) - 1/2); antithetic: e_(j + n/2) = -e_j
Uplink n floats a client. Downlink d floats, the model; or the n mean losses of each round since it last took part, that
one included, and the model once. The seed, of 8 bytes, is sent once. Salimans et al. 2017; Lan 2023. Without the seed
losses are of no use. Another aggregator takes the place of the mean over clients.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import InputError, Metrics, Order, PositiveFloat, ProblemView, Replies, ServerState, Window, options
from fedsim.zeroth_order import DRAWS, SEED, Population, ReplicaServer, mean_loss, of_losses


@options
class FedES(ReplicaServer):
    """Needs the client `fedes`."""

    purpose: ClassVar[str] = "fedes"
    columns: ClassVar[tuple[str, ...]] = ("losses",)
    down: ClassVar[frozenset[str]] = frozenset(
        {"params", "seed", "rounds", "losses", "from", "at", "lr", "directions"}
        | {"population", "sigma", "antithetic", "ranks"}
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
    downlink: Literal["model", "losses"] = "model"
    """What brings clients up to date: the model, or the mean losses of the rounds that they lack."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.antithetic and self.population % 2:
            raise InputError("population", self.population, "antithetic pairs make an even number")
        if self.downlink == "model":
            if self.join != "model":
                raise InputError("join", self.join, "the model is sent every round; remove it, or downlink = 'losses'")
            if self.history is not None:
                raise InputError("history", self.history, "the model is sent every round; remove it")

    @property
    def shape(self) -> Population:
        """How losses weigh the perturbations."""
        return Population(self.population, self.sigma, self.antithetic, self.ranks)

    def init(self, problem: ProblemView) -> ServerState:
        """An empty log, and nobody has joined."""
        return self.begin(problem, {"losses": problem.initial().new_zeros(0, self.population)})

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
        step = of_losses(state.memory["seed"], row, self.shape)
        params = step.apply_(state.params.clone(), self.lr, self.directions)
        logged = nothing if self.downlink == "model" else row
        return self.proceed(state, replies, params, logged), mean_loss(replies), True
