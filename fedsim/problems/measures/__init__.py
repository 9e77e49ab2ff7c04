"""What a model's outputs come to beside its loss: see `fedsim.problems.measures.base`.

Authors of measures find here all that they need.
"""

from fedsim.core.options import PositiveFloat, PositiveInt, options
from fedsim.nets.losses import Targets
from fedsim.problems.measures.base import Grouped, Measure, owners, sums
from fedsim.problems.measures.names import tables

__all__ = [
    "Grouped",
    "Measure",
    "PositiveFloat",
    "PositiveInt",
    "Targets",
    "options",
    "owners",
    "sums",
    "tables",
]
