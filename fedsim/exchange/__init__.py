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
from fedsim.exchange.aggregation import Aggregator, halving_sum
from fedsim.exchange.messages import Size
from fedsim.exchange.transforms import Sender, Shapes, Transform, Vector

__all__ = [
    "Aggregator",
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
    "Transform",
    "Vector",
    "halving_sum",
    "options",
]
