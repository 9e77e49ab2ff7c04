"""Power-of-choice: of some candidates, those whose loss is largest."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import PositiveInt, options
from fedsim.exchange.messages import Replies
from fedsim.server.selection.base import SelectorState, Turn
from fedsim.server.selection.draws import Draws, Ids, in_proportion, smallest
from fedsim.server.selection.size import FixedSize, noted


@options
class PowerOfChoice(FixedSize):
    """Of d free clients, drawn as in `weighted`, those with the largest losses work, ties to the smaller id.

    The larger d, the faster and the more biased towards clients that are hard to fit. Cho, Wang and Joshi 2022. There
    all replies have the same weight.
    """

    of_sizes: ClassVar[frozenset[str]] = frozenset({"ends"})

    pool: PositiveInt
    """d, at least as many as are selected; with as many it is `weighted`, and nobody is asked."""
    loss: Literal["full", "last"] = "full"
    """full, that of the current model on a client's examples, for which the model goes to d candidates and 4 bytes come
    back from each (pow-d); or last, the training loss of a client's last reply, which costs nothing, where clients
    without one come first (rpow-d).
    """
    score_examples: PositiveInt | None = None
    """On how many examples of each candidate its loss is measured; of full only (cpow-d). Not given: on all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hold(self.count or 1)
        if self.loss == "last" and self.score_examples is not None:
            raise InputError("score_examples", self.score_examples, 'leave it out, or take loss = "full"')

    def check(self, population: int) -> None:
        """Refuse fewer candidates than are selected."""
        super().check(population)
        self._hold(self.of(population), "selection.")

    def start(self, sizes: Tensor) -> SelectorState:
        """Add up the sizes: `ends`, int64 [N]; nobody has a last loss: `losses`, float64 [N]."""
        ends = sizes.to(device="cpu", dtype=torch.int64).cumsum(dim=0)
        state = {**super().start(sizes), "ends": ends}
        if self.loss == "last":
            state["losses"] = torch.full((len(sizes),), torch.inf, dtype=torch.float64)
        return state

    def candidates(self, state: SelectorState, turn: Turn) -> Tensor | None:
        """See `Selector`."""
        if self.loss == "last" or min(self.pool, turn.free.count) <= turn.wanted:
            return None
        return torch.from_numpy(self._drawn(state, turn))

    def choose(self, state: SelectorState, turn: Turn, scores: Tensor | None) -> Ids:
        """See `FixedSize`."""
        drawn = self._drawn(state, turn)
        if len(drawn) == turn.wanted:
            return drawn
        losses = state["losses"][drawn] if self.loss == "last" else scores
        if losses is None:
            raise ValueError("the candidates have not been asked for their losses")
        return np.sort(drawn[smallest(-losses.nan_to_num(nan=-torch.inf, posinf=torch.inf).numpy(), turn.wanted)])

    def observe(self, state: SelectorState, replies: Replies) -> SelectorState:
        """Note the losses of the replies where they are needed."""
        if self.loss == "full" or len(replies) == 0:
            return state
        if "loss" not in replies.metrics:
            raise InputError("selection.loss", self.loss, "the replies of this client carry no loss; take full")
        return {**state, "losses": noted(state["losses"], replies.clients, replies.metrics["loss"])}

    def _drawn(self, state: SelectorState, turn: Turn) -> Ids:
        """The candidates, ascending."""
        count = max(self.pool, turn.wanted)
        if count >= turn.free.count:
            return np.flatnonzero(turn.free.mask)
        return in_proportion(Draws.of(state, turn), "selection", state["ends"].numpy(), turn.free, count)

    def _hold(self, selected: int, table: str = "") -> None:
        option = "pool"
        if self.pool < selected:
            raise InputError(f"{table}{option}", self.pool, f"give at least the {selected} that are selected")
