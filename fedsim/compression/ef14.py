"""EF14: what has not crossed is added to the next message.

u_i = e_i + v_i;  D_i = C(u_i) crosses;  e_i <- u_i - D_i, d numbers a client
Seide et al. 2014; Stich et al. 2018. What is owed is in the units of v_i: where the weights of clients vary from round
to round, a part of it is never paid.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedsim.compression.feedback import Feedback
from fedsim.core.options import options
from fedsim.exchange.transforms import Shapes, Vector

TURNS = 2**20
"""Turns are told apart by so many, which single precision holds."""


@options
class EF14(Feedback):
    """For every strategy. With clients that differ it comes to stand near an optimum, not on it."""

    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What is owed is multiplied by this for each turn that a client has missed, since when the model has moved."""

    def state(self, length: int) -> Shapes:
        """See `Transform`."""
        return {"owed": (length,), **({"turn": (1,)} if self.decay < 1.0 else {})}

    def encode(self, vector: Vector) -> Vector:
        """See `Transform`."""
        owed, kept = vector.sender.state["owed"], dict[str, Tensor]()
        if self.decay < 1.0:
            turn: Any = torch.as_tensor(vector.sender.turn, device=owed.device) % TURNS
            now = turn.to(owed.dtype).expand(len(owed)).unsqueeze(1)
            owed = owed * self.decay ** ((now - vector.sender.state["turn"] - 1) % TURNS)
            kept["turn"] = now
        due = vector.rows + owed
        return vector.coded(due, learn=lambda arrived: {"owed": due - arrived, **kept})
