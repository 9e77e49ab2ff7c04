"""A curriculum of examples in a Flower client app: which of its examples the steps are about, and from when on.

The rules, and the draws, are those of `fedsim.client.curriculum`; the losses are the app's own. Vahidian et al. 2023.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from flwr.app import Context, Message

from fedsim.core.errors import InputError
from fedsim.core.options import BatchSize, NonNegativeInt, Passes, PositiveInt, options
from fedsim.core.pacing import Linear, Schedule, passes
from fedsim.core.philox import MASK, words
from fedsim.flower.local.models import as_array, setting
from fedsim.flower.names import PARTITION, ROUND


@options
class Curriculum:
    """Which examples the steps are about, and from when on; see `fedsim.client.curriculum.SampleCurriculum`."""

    epochs: Passes
    """There are as many steps as in so many passes over all examples."""
    batch_size: BatchSize
    """Examples of a step; full: all that are in."""
    order: Literal["curriculum", "anti", "random"] = "curriculum"
    """Ascending losses (curriculum), descending (anti), or a random order."""
    pacing: Schedule = Linear()
    """n(t), how many examples are in after t steps: a function, its name, or a table with `kind`, a and b."""
    floor: PositiveInt = 32
    """n(t) is at least that."""
    budget: Literal["epochs", "published"] = "epochs"
    """E ceil(N / B) steps, the last pass being cut off; published: E (floor(N / B) + 1), and it is completed."""
    seed: NonNegativeInt = 0
    """Names the draws, with the message's round and the node's partition or, where it has none, its id."""


def curriculum(message: Message, context: Context, losses: Any, **options: Any) -> list[list[int]]:
    """The batches of a whole local training, as numbers of examples: `DataLoader(data, batch_sampler=batches)`.

    losses: [N], of this client's examples under the model that was sent; what is not finite is the highest. options:
    those of `Curriculum`. Passes are over the first n(t) in the order, each freshly shuffled, t the steps so far.
    """
    chosen = Curriculum(**options)
    scores, number = as_array(losses), setting(message, ROUND)
    if scores.ndim != 1:
        raise InputError("losses", scores.shape, "give one loss an example, as reduction='none' does")
    if number is None or number < 1.0:
        raise InputError(ROUND, "(nothing)" if number is None else number, "the server counts its rounds from 1")
    owner, turn, count = int(context.node_config.get(PARTITION, context.node_id)) & MASK, int(number) - 1, len(scores)
    if not count:
        return []
    width = None if chosen.batch_size == "full" else chosen.batch_size
    taken, steps = passes(chosen.pacing, chosen.floor, chosen.budget == "published", count, chosen.epochs, width)
    ordered = words(chosen.seed, "curriculum", owner, count, turn=turn).argsort(kind="stable")
    if chosen.order != "random":
        keys = np.where(np.isfinite(scores), scores, np.inf)[ordered]
        ordered = ordered[np.argsort(-keys if chosen.order == "anti" else keys, kind="stable")]
    drawn = words(chosen.seed, "batches", owner, count * len(taken), turn=turn).reshape(len(taken), count)
    batches = []
    for keys, items in zip(drawn, taken, strict=True):
        first = ordered[:items]
        shuffled = first[np.argsort(keys[first], kind="stable")].tolist()
        size = width or items
        batches += [shuffled[start : start + size] for start in range(0, items, size)]
    return batches[:steps]
