"""Cohorts outside of a run, for estimators to probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.core.streams import Streams
from fedsim.engine.cohort import Cohort
from fedsim.engine.job import Job
from fedsim.exchange.messages import Cost, Order
from fedsim.problems.own_functions import black_box
from fedsim.testing.problems import DEVICE
from fedsim.zeroth_order.estimator import Estimate, Probe

D = 10
GRADIENT = torch.linspace(-1.0, 2.0, D, dtype=torch.float64, device=DEVICE)
ORIGIN = torch.zeros(D, dtype=torch.float64, device=DEVICE)


def linear(clients: Tensor, x: Tensor) -> Tensor:
    """g.x with the gradient g above, of every client."""
    return x @ GRADIENT


def opaque(
    function: Callable[[Tensor, Tensor], Tensor], clients: int, dimension: int = D, dtype: torch.dtype = torch.float64
) -> Any:
    """f(clients [C], x [C, Q, d]) -> [C, Q] as a black box over R^d."""
    return black_box(function, dimension=dimension, clients=clients, bounds=None, device=DEVICE, dtype=dtype)


def cohort_of(problem: Any, network: Any = None, count: int | None = None, **ordered: Any) -> Cohort:
    """The first `count` clients of a problem at work on nothing in particular, or on what is ordered."""
    clients = torch.arange(count or problem.num_clients, device=problem.device)
    order = Order(**{"action": "train", "clients": clients, "payload": {"params": problem.initial()}, **ordered})
    job = Job((order,), None, clients, Cost(torch.zeros_like(clients), {}), 0)
    return Cohort(problem, network, Streams(0), job, {})


def remembered(estimator: Any, cohort: Cohort) -> dict[str, Tensor]:
    """What clients remember before their first estimate."""
    shapes: Mapping[str, tuple[int, ...]] = estimator.state(cohort.dimension)
    return {
        name: torch.zeros((len(cohort), *shape), dtype=cohort.dtype, device=cohort.clients.device)
        for name, shape in shapes.items()
    }


def estimated(
    estimator: Any, cohort: Cohort, x: Tensor, memory: Mapping[str, Tensor] | None = None, step: int = 0
) -> Estimate:
    """One estimate at x [d] or [C, d], with a base where it is needed; what it asks for is held to its word."""
    probe = Probe(cohort, len(cohort), None, step)
    x = x.expand(len(cohort), -1)
    base = probe.query(x.unsqueeze(1))[:, 0] if estimator.needs_base else None
    before = cohort.queries.clone()
    found: Estimate = estimator.estimate(probe, x, base, memory or remembered(estimator, cohort))
    assert (cohort.queries - before).tolist() == [estimator.evaluations(cohort.dimension)] * len(cohort)
    return found


def moments(estimates: Tensor, gradient: Tensor) -> tuple[Tensor, float, float, float]:
    """Of estimates [C, d]: their mean and its standard error, a length; E|.|^2 / |g|^2 and its standard error."""
    spread = (estimates - estimates.mean(dim=0)).square().sum(dim=1).mean()
    squares = estimates.square().sum(dim=1) / gradient.square().sum()
    count = len(estimates)
    return (
        estimates.mean(dim=0),
        float((spread / count).sqrt()),
        float(squares.mean()),
        float(squares.std() / count**0.5),
    )
