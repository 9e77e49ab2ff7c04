"""Averaging by what clients' losses were under the model that they were sent."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.core.options import options
from fedsim.exchange.messages import Replies
from fedsim.server.strategy import Averaging, Config


@options
class ByLosses(Averaging):
    """Asks for f_i(theta), over all of a client's training examples, beside the change: a number up, and a pass."""

    up: ClassVar[frozenset[str]] = frozenset({"delta", "start-loss"})

    def config(self) -> Config:
        """Ask for the losses."""
        return {"report-start-loss": True}

    @staticmethod
    def losses(replies: Replies) -> Tensor:
        """The losses of those who answer, float64 [k]."""
        return replies.payload["start-loss"].squeeze(1).double()
