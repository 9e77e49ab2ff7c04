"""How fast clients' gradients change about a model: the largest eigenvalue of each Hessian, by the power iteration.

v <- H v / |H v|;  |H v| tends to the largest absolute eigenvalue, from below
Of quadratics that is L_i; of other functions it is that at this model, and may be more elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.core.streams import SERVER, Streams
from fedsim.nets.curvature import differentiated_twice
from fedsim.parallel.cores import spread
from fedsim.problems.supervised import Supervised

ITERATIONS = 200
ENOUGH = 1e-7
"""The relative change of |H v| at which the iteration ends."""


def smoothness(problem: Supervised, params: Tensor | None = None) -> tuple[Tensor, float]:
    """L_i of each client's mean loss, float64 [N], and L of the mean of those.

    params: the model, [d]; by default that to start from. Dropout is inactive, and running statistics are as they are.
    """
    at = problem.initial() if params is None else params
    everybody = list(range(problem.num_clients))

    def along(client: int, v: Tensor) -> Tensor:
        """The product of a client's Hessian with v."""
        with torch.enable_grad(), differentiated_twice():
            leaf = at.detach().requires_grad_()
            (slope,) = torch.autograd.grad(client_loss(problem, leaf, client), leaf, create_graph=True)
            if not slope.requires_grad:
                return torch.zeros_like(v)
            (product,) = torch.autograd.grad(slope, leaf, v, allow_unused=True, materialize_grads=True)
        return product

    def largest(client: int) -> float:
        first, last = (client, client + 1) if client != SERVER else (0, len(everybody))
        v = Streams(0).normal("smoothness", torch.tensor([client]), at.shape, dtype=torch.float64)[0].to(at)
        found = 0.0
        for _ in range(ITERATIONS):
            products = [along(one, v / v.norm()) for one in range(first, last)]
            v = torch.stack(products).mean(dim=0)
            before, found = found, float(v.norm())
            if abs(found - before) <= ENOUGH * found:
                break
        return found

    *own, whole = spread(largest, [*everybody, SERVER])
    return torch.tensor(own, dtype=torch.float64), whole


def client_loss(problem: Supervised, params: Tensor, client: int) -> Tensor:
    """The mean loss of a client's examples under parameters [d]."""
    data, offset, model = problem.data, problem.partition.offset, problem.model
    index = data.order[int(offset[client]) : int(offset[client + 1])]
    outputs = problem.functional(model.layout.named(params), data.x[index])
    return model.loss.examples(outputs, data.y[index]).mean()
