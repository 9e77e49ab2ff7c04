"""Data sets: where examples come from. Each loader is an `@options` class with `load(folder) -> Dataset`."""

from fedsim.core.data_files import DataFolder
from fedsim.problems.datasets.base import Dataset, Loader

__all__ = ["DataFolder", "Dataset", "Loader"]
