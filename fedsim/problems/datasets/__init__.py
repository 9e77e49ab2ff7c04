"""Data sets: where examples come from. Each loader is an `@options` class with `load(folder) -> Dataset`."""

from fedsim.problems.datasets.base import DataFolder, Dataset, Loader

__all__ = ["DataFolder", "Dataset", "Loader"]
