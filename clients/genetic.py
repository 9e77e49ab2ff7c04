"""The evaluator of the genetic algorithm: it rebuilds networks from chains of seeds, and tells how good they are.

x_j = theta_(parent of j) + p e(s_j), y_j = f_i(x_j), all on one batch of examples
Uplink n floats and n evaluations, of the whole population or of the client's part. Candidates for the elite are
measured on all of its examples, `repeats` times. A client keeps the parents' models, or rebuilds them from their
chains, which takes a vector a gene. A value that failed (NaN) is sent as one above all of the client's others, an
infinite one as one above everybody's: such a network ranks last. Within a problem's box points are clipped, chains not.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.client import BatchSize, Client, Cohort, Cost, Order, Size, Update, options
from fedsim.zeroth_order import Chains, Genome, batches, mean_told, ranked_last

AT_ONCE = 32
"""How many networks a client is asked about in one call."""


@options
class Genetic(Client):
    """Needs the strategy `genetic`."""

    values_only: ClassVar[bool] = True
    requires: ClassVar[frozenset[str]] = frozenset({"seed", "start", "scale", "seeds", "powers", "lengths"})
    accepts: ClassVar[frozenset[str]] = frozenset({"parents", "genes", "power", "split", "assigned", "repeats"})
    up: ClassVar[frozenset[str]] = frozenset({"fitness"})

    batch_size: BatchSize = "full"
    """Examples that a population's values are about; full: all of a client's, and all that a black box knows."""

    def numbers(self, dimension: int, largest: int) -> int:  # noqa: ARG002
        """The networks that are asked about at once, and as many again while they are evaluated."""
        return (2 * AT_ONCE + 2) * dimension

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """A value for each network, or for each of the client's."""
        given, steps, repeats = order.payload, torch.zeros_like(examples), 1
        if order.action == "validate":
            count, repeats = len(given["seeds"]), int(order.config["repeats"])
        else:
            count = given["assigned"].shape[1] if order.config["split"] else len(given["genes"])
            steps = steps + int(self.batch_size != "full")
        return Cost(steps, {"fitness": Size.of(given["start"].new_empty(count))}, count * repeats)

    def evaluate(self, cohort: Cohort) -> Update:
        """Tell the values [C, n] of the population, or of what each client is to look at."""
        genome, chains = _received(cohort)
        parents, genes = genome.rebuilt(chains), cohort.received("genes")
        places, power = cohort.received("parents"), float(cohort.config["power"])
        (batch,) = batches(cohort, self.batch_size, 1)
        own = cohort.received("assigned")[cohort.clients] if cohort.config["split"] else None
        count, found = len(genes) if own is None else own.shape[1], list[Tensor]()
        for first in range(0, count, AT_ONCE):
            asked = torch.arange(first, min(first + AT_ONCE, count), device=genes.device)
            chosen = asked if own is None else own[:, first : first + AT_ONCE].flatten()
            seeds = genes[chosen]
            x = genome.mutated(parents[places[chosen]], seeds, power) if len(parents) else genome.first(seeds)
            x = x.view(-1, len(asked), x.shape[1]).expand(len(cohort), -1, -1)
            found.append(cohort.query(_inside(cohort, x), batch))
        values = torch.cat(found, dim=1)
        return Update({"fitness": ranked_last(values)}, {"loss": mean_told(values)})

    def validate(self, cohort: Cohort) -> Update:
        """Tell the mean values [C, n] of the candidates over repeated evaluations."""
        genome, chains = _received(cohort)
        x = _inside(cohort, genome.rebuilt(chains).expand(len(cohort), -1, -1))
        parts = torch.split(x, AT_ONCE, dim=1)
        rounds = [[cohort.query(part) for part in parts] for _ in range(int(cohort.config["repeats"]))]
        values = torch.stack([torch.cat(one, dim=1) for one in rounds]).mean(dim=0)
        return Update({"fitness": ranked_last(values)}, {"loss": mean_told(values)})


def _received(cohort: Cohort) -> tuple[Genome, Chains]:
    genome = Genome(*(cohort.received(name) for name in ("seed", "start", "scale")))
    return genome, Chains(*(cohort.received(name) for name in ("seeds", "powers", "lengths")))


def _inside(cohort: Cohort, x: Tensor) -> Tensor:
    return x if cohort.bounds is None else x.clamp(*cohort.bounds)
