"""EvoFed: clients train, and send how far their changes go along random directions that everybody draws.

q_j = sum_i w_i Delta_i . e_j, j = 1..n
x <- x + lr alpha (2/n) sum_j q_j e_j
Each of B blocks of the model, of b parameters, has numbers of its own. The mean of (2/n) sum_j q_j e_j is 2 Delta, so
that alpha = 1/2 is right where n is far above b. Its mean square is 4 |Delta|^2 (1 + (b + 1)/n): where b is far above n
such steps are more noise than change. The best factor of one round, in the sense of least squares (optimal), is
alpha = 1 / (2 + 2 (b + 1)/n)
and short: over many rounds 1/2 was far better on the digits, with b = 10 n and 100 n. In the paper clients send the
fitness of x + sigma e_j (form = "fitness"), of which the mean over j is taken off:
F_j = -|Delta_i - sigma e_j|^2 = 2 sigma Delta_i . e_j - sigma^2 |e_j|^2 - |Delta_i|^2
It has the noise of the second term beside the projection. With decode = "least_squares", for E with rows e_j,
x <- x + lr E^T (E E^T)^-1 q
leaves an error of (1 - n/b) |Delta|^2.
Uplink n B floats. Downlink n B floats, coefficients of directions, of each round since the client last took part; once
the seed, of 8 bytes, and d floats, the model. Rahimi et al. 2023, of whom no code is published. Another aggregator
takes the place of the mean over clients.
"""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.server import (
    InputError,
    Metrics,
    Order,
    PositiveFloat,
    PositiveInt,
    ProblemView,
    Rate,
    Replies,
    ServerState,
    Streams,
    Weighting,
    Window,
    options,
)
from fedsim.zeroth_order import (
    DRAWS,
    SEED,
    ReplicaServer,
    edges_of,
    mean_loss,
    of_coefficients,
    part,
    population_keys,
    second_moment,
)

SOLVED = 1000
"""The most directions of a block that least squares are for."""


@options
class EvoFed(ReplicaServer):
    """Needs the client `evofed`."""

    purpose: ClassVar[str] = "evofed"
    columns: ClassVar[tuple[str, ...]] = ("coefficients",)
    down: ClassVar[frozenset[str]] = frozenset(
        {"params", "seed", "rounds", "coefficients", "from", "at", "lr", "directions"}
        | {"population", "blocks", "form", "sigma"}
    )
    up: ClassVar[frozenset[str]] = frozenset({"fitness"})

    lr: Rate = 1.0
    """The server's learning rate."""
    directions: Literal["gaussian", "rademacher"] = "gaussian"
    """The kind of the random vectors."""
    population: Annotated[int, Field(ge=2, le=DRAWS)] = 100
    """n, directions of a round."""
    blocks: PositiveInt = 1
    """B, parts of the model with n numbers each."""
    form: Literal["projection", "fitness"] = "projection"
    """What clients send: q_j, or F_j without the |Delta|^2 that all have in common."""
    sigma: PositiveFloat = 0.01
    """Of the fitness alone: at most a tenth of |Delta| / sqrt(d_b)."""
    alpha: PositiveFloat | Literal["optimal"] = 0.5
    """The factor, or the best one of a round (optimal)."""
    decode: Literal["mean", "least_squares"] = "mean"
    """What the server makes of projections."""
    weighting: Weighting = "examples"
    """Means over clients by their examples, or uniform."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma != type(self).sigma and self.form != "fitness":
            raise InputError("sigma", self.sigma, "is of form = 'fitness' alone; projections have none")
        if self.decode == "least_squares":
            for name, wrong in (("form", self.form == "fitness"), ("alpha", self.alpha != type(self).alpha)):
                if wrong:
                    raise InputError(name, getattr(self, name), "least squares need projections, and have no factor")
            if self.population > SOLVED:
                raise InputError("population", self.population, f"least squares are of {SOLVED} directions at most")

    def init(self, problem: ProblemView) -> ServerState:
        """An empty log, and nobody has joined."""
        params = problem.initial()
        if self.blocks > len(params):
            raise InputError("blocks", self.blocks, f"the model has {len(params)} parameters; take fewer")
        if self.decode == "least_squares" and self.population > len(params) // self.blocks:
            remedy = f"least squares need as many parameters in a block, which has {len(params) // self.blocks}"
            raise InputError("population", self.population, remedy)
        return self.begin(problem, {"coefficients": params.new_zeros(0, self.population * self.blocks)})

    def ask(self, state: ServerState, chosen: Tensor) -> tuple[Order, Window]:
        """Send what the clients lack of the log; wait for everybody."""
        width = self.population * self.blocks * state.params.element_size()
        sizes = torch.full((len(state.memory["rounds"]),), width)
        config = {name: getattr(self, name) for name in ("population", "blocks", "form", "sigma")}
        return self.order(state, chosen, {"seed": state.memory["seed"]}, config, sizes, joining=SEED)

    def tell(self, state: ServerState, replies: Replies) -> tuple[ServerState, Metrics, bool]:
        """Decode the mean, and take the step that its coefficients say."""
        row = {"rounds": self.in_round(state, 1)[:0], "coefficients": state.memory["coefficients"][:0]}
        if len(replies):
            fitness = replies.combine(replies.weights(self.weighting), name="fitness")
            found = self.decoded(fitness.double().view(self.population, self.blocks), state)
            row = {"rounds": self.in_round(state, 1), "coefficients": found.view(1, -1).to(fitness.dtype)}
        step = of_coefficients(state.memory["seed"], row, self.population)
        params = step.apply_(state.params.clone(), self.lr, self.directions)
        return self.proceed(state, replies, params, row), mean_loss(replies), True

    def decoded(self, told: Tensor, state: ServerState) -> Tensor:
        """The coefficients [n, B] of directions, of what clients have told on average, float64 [n, B]."""
        if self.form == "fitness":
            told = (told - told.mean(dim=0)) / (2.0 * self.sigma)
        edges = edges_of(len(state.params), self.blocks)
        found = [
            self._block(q, state, *ends) for q, ends in zip(told.unbind(1), itertools.pairwise(edges), strict=True)
        ]
        return torch.stack(found, dim=1)

    def _block(self, q: Tensor, state: ServerState, begin: int, end: int) -> Tensor:
        """The coefficients [n] of a block's projections [n]."""
        if self.decode == "mean":
            optimal = 0.5 / second_moment(self.directions, end - begin, self.population)
            return 2.0 / self.population * (optimal if self.alpha == "optimal" else self.alpha) * q
        keys = population_keys(self.in_round(state, 1), self.population, self.purpose)
        streams, where = Streams(int(state.memory["seed"])), state.params.device
        e = part(self.directions, streams, keys, begin, end, dtype=torch.float64, device=where)
        solved: Tensor = torch.linalg.solve(e @ e.T, q)
        return solved
