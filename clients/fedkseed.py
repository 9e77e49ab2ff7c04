"""FedKSeed's client: local steps along directions of a pool.

x = x_0 - lr * sum_j a_j z_j, then T steps, each with a j of the pool:
p = (f_i(y + mu z_j) - f_i(y - mu z_j)) / (2 mu),  y <- y - lr * p z_j
Uplink the T pairs (j, p), 8 T bytes; or h_j, the sum of the p of j, K floats. 2 T evaluations. To rebuild x, once for a
cohort, takes K directions. A step whose p is not finite, or whose values differ by more than `clip`, is not taken:
p = 0. Qin et al. 2024.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import Cohort, Cost, Order, Passes, PositiveFloat, Shapes, Size, Update, options
from fedsim.zeroth_order import PUBLIC, Replica, dual, kind_of, mean_told, part, pool_keys, rebuilt, slopes, summed


@options
class FedKSeed(Replica):
    """The state is x_0, d numbers, and whether the client has joined."""

    requires: ClassVar[frozenset[str]] = frozenset({"seed", "sums", "reply", "lr", "directions"})
    accepts: ClassVar[frozenset[str]] = frozenset({"params", "probabilities", "sampling"})
    up: ClassVar[frozenset[str]] = frozenset({"places", "scalars", "sums"})

    steps: Passes = 10
    """T, local steps of a round."""
    mu: PositiveFloat = 1e-3
    """The radius."""
    clip: PositiveFloat | None = None
    """The largest difference of two values that is taken for true. Not given: any."""

    def state(self, dimension: int) -> Shapes:
        """The first model, and whether it is there."""
        return {"start": (dimension,), "joined": ()}

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """T pairs or K floats, and two evaluations a step."""
        sums = order.payload["sums"]
        pairs = order.config["reply"] == "pairs"
        told = {"places": Size(self.steps, 32), "scalars": Size(self.steps, 8 * sums.element_size())}
        return Cost(self.steps_of(examples, self.steps), told if pairs else {"sums": Size.of(sums)}, 2 * self.steps)

    def train(self, cohort: Cohort) -> Update:
        """Rebuild the model; take local steps, and send which they were and how far they went."""
        config, seed, sums = cohort.config, cohort.received("seed"), cohort.received("sums")
        kind, lr = kind_of(config), float(config["lr"])
        start, joined = cohort.state["start"], cohort.state["joined"]
        if bool((joined == 0).any()):
            start = torch.where((joined == 0).unsqueeze(1), cohort.received("params"), start)
        cohort.keep(start=start, joined=torch.ones_like(joined))
        # Everybody was sent the same first model, so that one row stands for all.
        y = rebuilt(start[0], seed, sums, lr, kind).expand(len(cohort), -1).clone() if len(cohort) else start
        places = self._places(cohort, len(sums))
        scalars, values = y.new_zeros(2, len(cohort), self.steps)
        for step, batch in enumerate(self.batches(cohort, self.steps)):
            keys = pool_keys(seed, places[:, step])
            z = part(kind, PUBLIC, keys, 0, y.shape[1], dtype=y.dtype, device=y.device)
            p, values[:, step] = slopes(cohort, batch, y, z, self.mu)
            if self.clip is not None:
                p = torch.where((p * (2.0 * self.mu)).abs() <= self.clip, p, 0.0)
            scalars[:, step] = p
            y.sub_((p.double() * lr).to(y.dtype).unsqueeze(1) * dual(kind, z))
        metrics = {"loss": mean_told(values)}
        if config["reply"] == "pairs":
            return Update({"places": places.to(torch.int32), "scalars": scalars}, metrics)
        return Update({"sums": summed(places, scalars, len(sums))}, metrics)

    def _places(self, cohort: Cohort, pool: int) -> Tensor:
        """Which of the pool each step takes, int64 [C, T]."""
        shape, turn = (self.steps,), cohort.turn
        if "sampling" not in cohort.config:
            return cohort.streams.integers("pool", cohort.clients, shape, pool, turn=turn)
        below = cohort.received("probabilities").double().cumsum(0)
        drawn = cohort.streams.uniform("pool", cohort.clients, shape, turn=turn, dtype=torch.float64)
        return torch.searchsorted(below, drawn * below[-1], right=True).clamp(max=pool - 1)
