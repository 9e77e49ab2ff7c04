"""How much a client's gradients weigh in its change, which FedNova divides by (Wang et al. 2020, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.nets.elementwise import in_whole_registers


def normaliser(steps: Tensor, *, momentum: float = 0.0, shrinkage: float = 0.0) -> Tensor:
    """nu, the l1 norm of the gradients' weights in Delta / lr after so many steps [C] of SGD, float64 [C].

    tau steps of plain SGD: tau. Momentum rho: (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho). A proximal term mu,
    whose shrinkage is lr mu: (1 - (1 - lr mu)^tau) / (lr mu).
    """
    tau = steps.double()

    def power(base: float) -> Tensor:
        return in_whole_registers(lambda exponents: torch.pow(base, exponents), tau)

    if momentum:
        return (tau - momentum * (1.0 - power(momentum)) / (1.0 - momentum)) / (1.0 - momentum)
    if shrinkage:
        return (1.0 - power(1.0 - shrinkage)) / shrinkage
    return tau
