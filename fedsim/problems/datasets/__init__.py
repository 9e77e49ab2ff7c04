"""Data sets: where examples come from. An author of one imports all that it needs from here.

Each is an `@options` class with `load(folder) -> Dataset`.
"""

from fedsim.core.data_files import Array, DataFolder, damaged, read_arrays, reading
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
from fedsim.problems.datasets.base import Dataset, Loader, split_dataset, standardise, unit_scale

__all__ = [
    "Array",
    "DataFolder",
    "Dataset",
    "Fraction",
    "InputError",
    "Loader",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Share",
    "Streams",
    "damaged",
    "options",
    "read_arrays",
    "reading",
    "split_dataset",
    "standardise",
    "unit_scale",
]
