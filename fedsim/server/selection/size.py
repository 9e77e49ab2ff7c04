"""What selectors share: how many clients they take, and what the simplest of them leave to others."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.exchange.messages import broken, shown
from fedsim.server.selection.base import Selector, SelectorState, Turn
from fedsim.server.selection.draws import Ids


@options
class FixedSize(Selector):
    """How many clients are selected: `count` or `fraction`, of which one is given."""

    count: PositiveInt | None = None
    """Clients of a selection. Not given: fraction decides."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """The same as a share of the population, rounded, at least one client. Not given: count decides."""

    def __post_init__(self) -> None:
        if self.count is None and self.fraction is None:
            raise InputError("count", "(nothing)", "give count or fraction")
        if self.count is not None and self.fraction is not None:
            raise InputError("fraction", self.fraction, f"give it or count ({self.count}), not both")

    def check(self, population: int) -> None:
        """Refuse a count above the population."""
        if self.count is not None and self.count > population:
            raise InputError(
                "selection.count", self.count, f"there are only {population} clients; take that many at most"
            )

    def of(self, population: int) -> int:
        """How many clients of this population a selection takes."""
        if self.count is not None:
            return self.count
        return max(1, round((self.fraction or 0.0) * population))

    def select(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> tuple[Tensor, SelectorState]:
        """See `Selector`."""
        if turn.wanted >= turn.free.count:  # nothing is drawn; for one of thousands twice as quick as np.flatnonzero
            return torch.from_numpy(turn.free.mask.nonzero()[0]), dict(state)
        kept, chosen = dict(state), cast("Any", self.choose(state, turn, scores))
        if not isinstance(chosen, np.ndarray) or chosen.dtype != np.int64:
            found = f"an array of {chosen.dtype}" if isinstance(chosen, np.ndarray) else shown(chosen)
            raise broken("selection", "selectors", self, f"choose returns {found}, not an array of ids, int64 [k]")
        return torch.from_numpy(np.ascontiguousarray(chosen)), {**kept, "selections": kept["selections"] + 1}

    @abstractmethod
    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:
        """Choose where more are free than wanted: ids, int64 [wanted], ascending."""


def noted(column: Tensor, clients: Tensor, values: Tensor) -> Tensor:
    """A column [N] of a state with the values [k] of some clients [k] written in; the last of a client's stays."""
    written = column.clone()
    # NumPy promises what PyTorch leaves open: where a client occurs twice, the later value wins.
    written.numpy()[clients.numpy()] = values.to("cpu", column.dtype).numpy()
    return written
