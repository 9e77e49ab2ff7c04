"""FedIvon: clients' models are merged number by number, by how surely each client knows it.

theta <- theta + eta * sum_i w_i P_i Delta_i / sum_i w_i P_i,  P_i = h_i + prior, the precision that IVON has learnt
With w_i by examples that is the mean of the product of the clients' posteriors, whose precisions are n_i P_i. Uplink 2d
floats a client, downlink d. Shen et al. 2024; Pal et al. 2025, whose clients begin with the merged precision, too.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedsim.server import Averaging, Config, Replies, ServerState, options


@options
class FedIvon(Averaging):
    """Needs an optimizer of clients that learns precisions, as ivon. Where all are the same it is FedAvg.

    A number that nobody knows anything of, as where a transform has left it out, stays.
    """

    up: ClassVar[frozenset[str]] = frozenset({"delta", "precision"})
    aggregates: ClassVar[bool] = False

    def config(self) -> Config:
        """Ask for P."""
        return {"report-precision": True}

    def change(self, state: ServerState, replies: Replies) -> Tensor:
        """The mean change of each number by precision; of running statistics the plain one."""
        weights, precision = replies.weights(self.weighting), replies.payload["precision"]
        known = replies.combine(weights, name="precision")
        moved = replies.combine(weights, rows=precision * replies.payload["delta"])
        merged = torch.where(known > 0.0, moved / known, 0.0)
        return merged if state.trained is None else state.joined(merged, replies.combine(weights))
