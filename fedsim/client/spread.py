"""How unlike the examples of a client's first mini-batch are to each other, from which a server chooses batch sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsim.engine.cohort import Cohort
from fedsim.nets.dropout import Draw
from fedsim.nets.network import Batch

AT_ONCE = 2**22
"""Numbers of parameters, or of inputs, that are stacked at once."""


def spreads(cohort: Cohort, start: Tensor, passes: dict[str, Any]) -> Tensor:
    """Of each client V and N, [C, 2]: how its examples' gradients at `start` vary, and the square of their mean.

    V = sum_j var_b(g_b[j]), unbiased, over the examples b of its first mini-batch; N = |mean_b g_b|^2; both of the loss
    without penalties. A client with one example has V = 0. passes: as of `Cohort.plan`.
    """
    network, y, data = cohort.network, cohort.stack(start), cohort.data
    plan = cohort.first_steps(**passes)  # the same however many follow
    index, count = plan.index[plan.first], plan.count[plan.first].unsqueeze(1)
    index = index.repeat(1, 2) if index.shape[1] == 1 else index  # as where clients train
    weight = (torch.arange(index.shape[1], device=index.device) < count).to(start.dtype) / count.to(start.dtype)
    numbers = max(cohort.dimension, index.shape[1] * data.x[0].numel())
    several = max(1, AT_ONCE // numbers) if network.stacked else 1
    found = start.new_zeros((len(cohort), 2))
    for begin in range(0, len(cohort), several):
        rows = slice(begin, begin + several)
        turn = cohort.turn[rows] if isinstance(cohort.turn, Tensor) else cohort.turn
        draw = Draw(cohort.streams, cohort.clients[rows], turn, 0)
        batch = Batch(data.x[index[rows]], data.y[index[rows]], weight[rows], draw)
        found[rows] = torch.stack(network.spread(y[rows], batch), dim=1)
    return found
