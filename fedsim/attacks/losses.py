"""What attacks maximise, and defences add to a loss, beside the loss itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.nets.losses import Loss


class Margin(Loss):
    """max_{k != y} z_k - z_y, the margin by which an example is misclassified: Carlini and Wagner 2017, f_6."""

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [...] of outputs [..., K] and targets [...]."""
        at = targets.unsqueeze(-1)
        others = outputs.scatter(-1, at, -torch.inf).amax(dim=-1)
        return others - outputs.gather(-1, at).squeeze(-1)


@dataclass(frozen=True)
class Divergence(Loss):
    """KL(p || softmax(z)) from fixed predictions. reference: log p, [..., K]."""

    reference: Tensor

    def examples(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Losses [...] of outputs [..., K]; targets are not looked at."""
        return divergence(self.reference, torch.log_softmax(outputs, dim=-1))


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k (log p_k - log q_k) of log probabilities [..., K]: [...]."""
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
