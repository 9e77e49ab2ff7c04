"""The Gaussian process as an estimator: what it asks, what it remembers, and where its gradient points."""

from __future__ import annotations

import torch
from probing import GRADIENT, ORIGIN, D, cohort_of, estimated, linear, opaque

from clients.zeroth_order.gaussian_process import GaussianProcess


def test_it_learns_the_gradient_of_a_linear_function_from_enough_values() -> None:
    """With more values than coordinates the mean's gradient is that of f; with none from before it is a part of it."""
    cohort = cohort_of(opaque(linear, 3))
    few, many = GaussianProcess(active=2, radius=0.1), GaussianProcess(active=4 * D, radius=0.1)
    for estimator, least in ((few, 0.1), (many, 0.99)):
        found = estimated(estimator, cohort, ORIGIN)
        cosine = torch.cosine_similarity(found.gradient, GRADIENT.expand(3, -1), dim=1)
        assert bool((cosine > least).all())
        assert bool((found.memory["count"] == 1 + estimator.active).all())
    assert float((found.gradient - GRADIENT).abs().max()) < 0.02


def test_what_was_seen_before_helps_and_is_not_changed() -> None:
    cohort, estimator = cohort_of(opaque(linear, 3)), GaussianProcess(active=3, radius=0.1)
    first = estimated(estimator, cohort, ORIGIN, step=0)
    kept = {name: rows.clone() for name, rows in first.memory.items()}
    memory = first.memory
    for step in range(1, D):
        memory = estimated(estimator, cohort, ORIGIN + 0.01 * step, memory, step=step).memory
    last = estimated(estimator, cohort, ORIGIN, memory, step=D)
    assert all(torch.equal(first.memory[name], rows) for name, rows in kept.items())
    errors = [(found.gradient - GRADIENT).norm(dim=1) for found in (first, last)]
    assert bool((errors[1] < 0.5 * errors[0]).all())


def test_constant_functions_and_bad_values_give_no_direction() -> None:
    flat = estimated(GaussianProcess(), cohort_of(opaque(lambda clients, x: x[..., 0] * 0.0 + 2.0, 2)), ORIGIN)
    assert torch.equal(flat.gradient, torch.zeros_like(flat.gradient))
    bad = estimated(GaussianProcess(), cohort_of(opaque(lambda clients, x: x[..., 0] * torch.nan, 2)), ORIGIN)
    assert torch.equal(bad.gradient, torch.zeros_like(bad.gradient))
    assert bool((bad.memory["count"] == 0).all())
