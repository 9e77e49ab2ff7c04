"""FedES's client: the losses of n perturbed models.

l_j = f_i(x + sigma e_j), j = 0 .. n-1;  antithetic: e_(j + n/2) = -e_j
Uplink n floats; n evaluations, all on one batch. Where losses are ranked one that failed (NaN) is sent as one above all
of the client's others, and an infinite one as one above everybody's: of the worst rank, which those that failed share.
Else it is sent as its mirror's, or as the mean of the client's others, so that it says nothing. Lan 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import Cohort, Cost, Order, Scalar, Size, Streams, Update, options
from fedsim.zeroth_order import (
    Population,
    Replica,
    caught_up,
    kind_of,
    mean_told,
    of_losses,
    population_keys,
    ranked_last,
    saying_nothing,
)

AT_ONCE = 2**20
"""Numbers of perturbed models that exist at once."""


@options
class FedES(Replica):
    """The batch of a round is the same for all perturbations."""

    takes_slopes: ClassVar[bool] = False  # but ranks or means over a population, which a rounding leaves something of

    requires: ClassVar[frozenset[str]] = frozenset(
        {"seed", "rounds", "losses", "from", "at", "lr", "directions", "population", "sigma", "antithetic", "ranks"}
        | {"orthogonal"}
    )
    accepts: ClassVar[frozenset[str]] = frozenset({"params"})
    up: ClassVar[frozenset[str]] = frozenset({"losses"})

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """N floats, and as many evaluations."""
        count = int(order.config["population"])
        losses = Size(count, 8 * order.payload["losses"].element_size())
        return Cost(self.steps_of(examples, 1), {"losses": losses}, count)

    def train(self, cohort: Cohort) -> Update:
        """Know the model; measure the losses around it."""
        config, seed = cohort.config, cohort.received("seed")
        shape = _population(config)
        log = {name: cohort.received(name) for name in ("rounds", "losses")}
        x = caught_up(cohort, of_losses(seed, log, shape))
        losses = x.new_zeros(len(cohort), shape.size)
        (batch,) = self.batches(cohort, 1)
        keys = population_keys(torch.tensor([cohort.round], device=x.device), shape.directions)
        halves = losses.view(len(cohort), 1 + shape.antithetic, shape.directions)
        # Of d alone: a call names the draws of a noisy black box, whoever else is in the cohort.
        width = shape.directions if shape.orthogonal else max(1, AT_ONCE // x.shape[1])
        for first in range(0, shape.directions, width):
            group = slice(first, first + width)
            e = shape.drawn(kind_of(config), Streams(int(seed)), keys[group], x)
            shift = shape.sigma * e
            halves[:, 0, group] = cohort.query(x.unsqueeze(1) + shift, batch)
            if shape.antithetic:
                halves[:, 1, group] = cohort.query(x.unsqueeze(1) - shift, batch)
        told = ranked_last(losses) if shape.ranks else saying_nothing(halves).flatten(1)
        return Update({"losses": told}, {"loss": mean_told(losses)})


def _population(config: Mapping[str, Scalar]) -> Population:
    size, sigma = int(config["population"]), float(config["sigma"])
    return Population(size, sigma, bool(config["antithetic"]), bool(config["ranks"]), bool(config["orthogonal"]))
