"""DeComFL's client: K local steps from its replica, of which the scalars are sent and nothing is kept.

g_kp = (f_i(y + mu z_kp) - f_i(y - mu z_kp)) / (2 mu), or forward (f_i(y + mu z_kp) - f_i(y)) / mu
y <- y - lr * (1/P) sum_p g_kp z_kp
Uplink K P floats; 2 K P evaluations, forward K (P + 1). A slope that is not finite is 0. Li et al. 2025.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from fedsim.client import Cohort, Cost, Order, PositiveFloat, Size, Update, options
from fedsim.zeroth_order import (
    PUBLIC,
    Replica,
    caught_up,
    finite,
    kind_of,
    mean_told,
    of_scalars,
    part,
    replay_,
    seeded_keys,
    slopes,
)


@options
class DeComFL(Replica):
    """Needs the strategy `decomfl`."""

    requires: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "seeds", "scalars", "now", "from", "at", "lr", "directions", "perturbations"}
    )
    accepts: ClassVar[frozenset[str]] = frozenset({"params"})
    up: ClassVar[frozenset[str]] = frozenset({"scalars"})

    mu: PositiveFloat = 1e-3
    """The radius."""
    difference: Literal["central", "forward"] = "central"
    """Slopes of two perturbed values (central), or of one and the value at y (forward)."""

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """K P floats, and one or two evaluations each."""
        steps, perturbations = len(order.payload["now"]), int(order.config["perturbations"])
        queries = 2 * perturbations if self.difference == "central" else perturbations + 1
        scalars = Size(steps * perturbations, 8 * order.payload["scalars"].element_size())
        return Cost(self.steps_of(examples, steps), {"scalars": scalars}, steps * queries)

    def train(self, cohort: Cohort) -> Update:
        """Catch up with the log; take local steps, and send their scalars."""
        config, now = cohort.config, cohort.received("now")
        x = caught_up(cohort, of_scalars({name: cohort.received(name) for name in ("rounds", "seeds", "scalars")}))
        count, kind, y = int(config["perturbations"]), kind_of(config), x.clone()
        scalars, values = x.new_zeros(len(cohort), len(now), count), x.new_zeros(len(cohort), len(now))
        for step, batch in enumerate(self.batches(cohort, len(now))):
            keys = seeded_keys(now[step : step + 1], count)
            if self.difference == "forward":
                values[:, step] = cohort.query(y.unsqueeze(1), batch)[:, 0]
            for place in range(count):
                named = keys[place : place + 1]
                z = part(kind, PUBLIC, named, 0, x.shape[1], dtype=x.dtype, device=x.device)[0]
                if self.difference == "forward":
                    ahead = cohort.query((y + self.mu * z).unsqueeze(1), batch)[:, 0]
                    scalars[:, step, place] = finite((ahead - values[:, step]) / self.mu)
                else:
                    scalars[:, step, place], value = slopes(cohort, batch, y, z, self.mu)
                    values[:, step] += value / count
            replay_(y, PUBLIC, keys, scalars[:, step].double().T / count, rate=float(config["lr"]), kind=kind)
        return Update({"scalars": scalars.flatten(1)}, {"loss": mean_told(values)})
