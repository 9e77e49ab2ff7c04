"""EvoFed's client: it trains, and sends how far its change goes along random directions.

y from E epochs or T steps of local training from x, Delta = y - x
q_j = Delta . e_j, j = 1..n, of each of B blocks of the model by itself; or F_j = 2 sigma q_j - sigma^2 |e_j|^2, which
is -|Delta - sigma e_j|^2 without the term that all j have in common
Uplink n B floats. A client keeps a replica of the model. Rahimi et al. 2023.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch

from fedsim.client import Cohort, LocalTraining, Order, Shapes, Size, Streams, Update, options, products
from fedsim.zeroth_order import caught_up, edges_of, kind_of, of_coefficients, part, population_keys, replica_state

AT_ONCE = 2**20
"""Numbers of directions that exist at once."""


@options
class EvoFed(LocalTraining):
    """Needs the strategy `evofed`."""

    requires: ClassVar[frozenset[str]] = frozenset(
        {"seed", "rounds", "coefficients", "from", "at", "lr", "directions", "population", "blocks", "form", "sigma"}
    )
    accepts: ClassVar[frozenset[str]] = frozenset({"params"})
    up: ClassVar[frozenset[str]] = frozenset({"fitness"})
    descends: ClassVar[bool] = True
    keeps_statistics: ClassVar[bool] = False

    same_every_round: ClassVar[bool] = False

    def state(self, dimension: int) -> Shapes:
        """The replica, and what else local training keeps."""
        return {**super().state(dimension), **replica_state(dimension)}

    def reply(self, order: Order) -> dict[str, Size]:
        """N B numbers."""
        return {"fitness": Size.of(order.payload["coefficients"].new_empty(_count(order)))}

    def train(self, cohort: Cohort) -> Update:
        """Catch up with the log; train, and project the change."""
        config, seed = cohort.config, cohort.received("seed")
        count, log = int(config["population"]), {name: cohort.received(name) for name in ("rounds", "coefficients")}
        x = caught_up(cohort, of_coefficients(seed, log, count))
        trained = self.descend(cohort, x, change=True)
        edges, kind, streams = edges_of(x.shape[1], int(config["blocks"])), kind_of(config), Streams(int(seed))
        keys = population_keys(torch.tensor([cohort.round], device=x.device), count, "evofed")
        told = x.new_empty(len(x), count, len(edges) - 1)
        for block, (begin, end) in enumerate(itertools.pairwise(edges)):
            width = max(1, AT_ONCE // max(1, end - begin))
            for first in range(0, count, width):
                group = slice(first, first + width)
                e = part(kind, streams, keys[group], begin, end, dtype=x.dtype, device=x.device)
                q = products.mm(trained.params[:, begin:end], e.T)
                if config["form"] == "fitness":
                    sigma = float(config["sigma"])
                    q = 2.0 * sigma * q - sigma**2 * e.square().sum(dim=1)
                told[:, group, block] = q
        return Update({"fitness": told.flatten(1)}, {"loss": trained.loss})


def _count(order: Order) -> int:
    return int(order.config["population"]) * int(order.config["blocks"])
