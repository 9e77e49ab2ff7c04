"""How a strategy of ours behaves in an app."""

from __future__ import annotations

from typing import Literal

from fedsim.core.options import Box, NonNegativeInt, PositiveInt, Seconds, Share, Texts, options
from fedsim.flower.names import ARRAYS, CONFIG, EVALUATED, EXAMPLES, LOSS


@options
class AppOptions:
    """How a strategy of ours behaves in an app; names are those of Flower's own strategies where these have them."""

    seed: int = 0
    """Of all that the server draws: who is selected and who evaluates."""
    duration: Seconds | None = None
    """Seconds after which a run ends: of the wall, or of a virtual grid. Not given: rounds count."""
    fraction_evaluate: Share | None = None
    """Share of the free nodes that evaluate the model after a round. Not given: all, and with an asynchronous strategy
    none, whose nodes would wait for it.
    """
    min_evaluate_nodes: NonNegativeInt = 2
    """At least so many evaluate it, if there are as many."""
    min_available_nodes: PositiveInt | None = None
    """Wait for so many nodes before the first round. Not given: for as many as the selection counts, or two."""
    evaluate_every: PositiveInt = 1
    """Rounds between two evaluations; the last round has one in any case."""
    weighted_by_key: str = EXAMPLES
    """What replies weigh by, among their metrics."""
    arrayrecord_key: str = ARRAYS
    """The record of the model in messages."""
    configrecord_key: str = CONFIG
    """The record of settings in messages."""
    loss_key: str = LOSS
    """The loss in the metrics of `train` replies."""
    evaluate_loss_key: str = EVALUATED
    """The loss in the metrics of `evaluate` replies, which selectors ask for."""
    bounds: Box | None = None
    """Of searches that choose the points themselves: the box that these are in, a lower and an upper bound of every
    number. Not given: anywhere.
    """
    frozen: Texts = ()
    """Arrays that stay as they are, by names, or patterns such as `encoder.*`."""
    integers: Literal["largest", "latest"] = "largest"
    """Whose whole numbers, such as a normalisation's count of batches, the model has: those of the reply with most
    examples, or of the latest.
    """
    identify: bool = False
    """Number nodes by their partitions, for which the app must answer (`fedsim.flower.mods.identify`): then a seed
    selects the same partitions in every run. Otherwise they are numbered as the grid lists them.
    """
    checkpoint_every: PositiveInt | None = None
    """Rounds between two checkpoints. Not given: so many that they take up to 5 % of the time."""
