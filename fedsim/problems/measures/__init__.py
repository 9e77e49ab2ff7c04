"""What a model's outputs come to beside its loss: see `fedsim.problems.measures.base`."""

from fedsim.problems.measures.base import Grouped, Measure, owners, sums
from fedsim.problems.measures.means import Accuracy
from fedsim.problems.measures.names import tables

__all__ = ["Accuracy", "Grouped", "Measure", "owners", "sums", "tables"]
