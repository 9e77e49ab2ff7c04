"""When a run is given up: nothing comes of waiting, or nothing that comes is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedsim.core.clock import seconds
from fedsim.core.errors import DivergedError, StalledError
from fedsim.core.graph import storable

RESTS = 100_000
"""How often in a row something is waited for in vain before a run is given up."""


@storable("patience")
@dataclass
class Patience:
    """How often in a row a run has waited in vain, and how many updates in a row were not finite."""

    waits: int = 0
    failed: int = 0

    def waited_in_vain(self, now: int) -> None:
        """Count that time went by, to tick `now`, and nothing came of it. StalledError: too often in a row."""
        self.waits += 1
        if self.waits > RESTS:
            text = f"nothing has come of waiting {RESTS} times in a row (virtual time {seconds(now):g} s)"
            raise StalledError(text)

    def replied(self, number: int, usable: int, failed: int, bearable: int) -> None:
        """Count updates of round `number`: those that can be used, and those that clients have computed in vain.

        DivergedError: so many that failed, one after the other, are no longer bearable.
        """
        self.failed = 0 if usable else self.failed + failed
        if self.failed >= bearable:
            raise DivergedError(f"none of the {self.failed} updates of round {number} is finite; lower client.lr")


def hold_finite(number: int, params: Tensor, metrics: Mapping[str, float]) -> None:
    """End a run that cannot get better, with what to do about it."""
    if not math.isfinite(float(params.sum())):
        raise DivergedError(
            f"the global model is not finite after round {number}; lower client.lr or strategy.server_lr"
        )
    loss = metrics.get("train_loss", 0.0)
    if not math.isfinite(loss):
        raise DivergedError(f"train_loss is {loss} in round {number}; lower client.lr")
