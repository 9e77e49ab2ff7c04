"""What crosses between server and clients, and what is done to it on its way.

An author of an aggregator or a transform imports all that it needs from here.
"""

from fedsim.core.errors import InputError
from fedsim.core.options import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    options,
)
from fedsim.core.streams import Streams
from fedsim.exchange.aggregation import Aggregator, WeightedMean, halving_sum
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Chain, Sender, Shapes, Transform, Vector

__all__ = [
    "Aggregator",
    "Chain",
    "Fraction",
    "InputError",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Sender",
    "Shapes",
    "Share",
    "Size",
    "Streams",
    "Transform",
    "Vector",
    "WeightedMean",
    "halving_sum",
    "options",
]
