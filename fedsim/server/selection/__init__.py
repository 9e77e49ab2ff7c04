"""Selectors: which of the free clients work next. An author of one imports all that it needs from here."""

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
from fedsim.exchange.messages import Free, Replies
from fedsim.server.selection.base import Selector, SelectorState, Turn
from fedsim.server.selection.draws import Draws, Ids, evenly, free_where, in_proportion, smallest
from fedsim.server.selection.size import FixedSize, noted

__all__ = [
    "Draws",
    "FixedSize",
    "Fraction",
    "Free",
    "Ids",
    "InputError",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Replies",
    "Selector",
    "SelectorState",
    "Share",
    "Streams",
    "Turn",
    "evenly",
    "free_where",
    "in_proportion",
    "noted",
    "options",
    "smallest",
]
