"""The options of a model's normalisation: what clients share of it, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fedsim.core.options import options
from fedsim.nets.normalisation import Statistics

Rule = Literal[Statistics, "local_statistics", "local"]
"""What becomes of running statistics, whether clients share them or not."""
PRIVATE: Mapping[str, tuple[str, ...]] = {"local_statistics": ("statistics",), "local": ("norm",)}
"""What stays with clients, in words of `Supervised.keeping`."""


@options
class Normalisation:
    """What becomes of what layers of normalisation know."""

    statistics: Rule = "averaged"
    """Running means and variances are averaged, or means and second moments (pooled: the variance of all together), or
    stay as at the start (frozen), or with each client, alone (SiloBN) or as all of the layer (local, FedBN).
    """

    @property
    def shared(self) -> Statistics | None:
        """What becomes of statistics that are shared; None: nothing is said of them."""
        given = self.statistics
        return None if given == "local_statistics" or given == "local" else given

    @property
    def private(self) -> tuple[str, ...]:
        """What stays with each client."""
        return PRIVATE.get(self.statistics, ())
