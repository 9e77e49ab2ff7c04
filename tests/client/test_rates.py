"""Rates over the steps of a round, and of clients whose batches are small."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedsim
from clients.sgd import Sgd
from fedsim.client.rates import LocalCosine, LocalLinear, LocalTable, factors_of
from fedsim.client.training import LocalTraining
from fedsim.core.errors import DivergedError, InputError
from fedsim.engine.cohort import Cohort
from fedsim.exchange.messages import Order
from fedsim.running.build import build_executor
from fedsim.testing.problems import blobs, mlp
from fedsim.testing.problems import small_experiment as small

SIZES = (11, 3, 7)
"""In batches of 4: 3, 1 and 2 steps an epoch."""


def factors(schedule: Any, steps: int) -> list[float]:
    return [schedule.factor(step, steps) for step in range(steps)]


def test_local_schedules_are_their_formulas() -> None:
    assert factors(LocalLinear(), 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert factors(LocalLinear(end=0.5), 2) == pytest.approx([1.0, 0.75])
    assert factors(LocalCosine(), 3) == pytest.approx([1.0, 0.75, 0.25])  # cos of 0, pi / 3, 2 pi / 3
    assert factors(LocalCosine(end=0.2), 2) == pytest.approx([1.0, 0.6])


def test_a_local_table_is_over_the_same_part_of_a_round_for_few_steps_and_for_many() -> None:
    table = LocalTable(factors=(1.0, 0.5, 0.1))
    assert factors(table, 3) == [1.0, 0.5, 0.1]
    assert factors(table, 6) == [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]
    assert factors(table, 1) == [1.0]
    assert factors(table, 2) == [1.0, 0.5]  # the second step begins half-way, in the middle third
    with pytest.raises(InputError, match=r"factors = 0.0: a client's first step"):
        LocalTable(factors=(0.0, 1.0))


def test_what_is_after_a_client_s_last_step_counts_nothing() -> None:
    found = factors_of(torch.tensor([3, 1, 0]), LocalLinear())
    assert found.tolist() == [[1.0, 1.0, 0.0], [pytest.approx(2 / 3), 0.0, 0.0], [pytest.approx(1 / 3), 0.0, 0.0]]


def problem() -> Any:
    return fedsim.supervised(**blobs(sizes=SIZES), model=mlp(), dtype=torch.float64, device="cpu")


def changes(executor: str, **client: Any) -> torch.Tensor:
    """Delta [3, d] of a round."""
    made = problem()
    training = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1} | client
    experiment = small(1, client=training, selection={"kind": "uniform", "count": 3}, engine={"executor": executor})
    working = build_executor(experiment, made)
    sent = {"params": made.initial()}
    return working.execute(working.assign(Order("train", torch.arange(3), sent))).payload["delta"]


RATED = {"local_schedule": {"kind": "linear", "end": 0.1}, "lr_scaling": "sqrt", "reference_batch": 8}


@pytest.mark.parametrize("optimizer", ["sgd", {"kind": "adam", "beta2": 0.9}])
def test_executors_come_to_the_same(optimizer: Any) -> None:
    stacked = changes("stacked", optimizer=optimizer, **RATED)
    for executor in ("loop", "fused"):
        assert torch.allclose(changes(executor, optimizer=optimizer, **RATED), stacked, rtol=0, atol=1e-12)
    assert not torch.allclose(stacked, changes("stacked", optimizer=optimizer, lr_scaling="sqrt", reference_batch=8))


def test_a_falling_rate_is_by_hand_that_of_steps_one_by_one() -> None:
    """The client with 3 examples takes two full batches, at lr and at lr / 2; with `steps` the factors are the same."""
    made = problem()
    order = Order("train", torch.tensor([1]), {"params": made.initial()})

    def delta(start: torch.Tensor, **client: Any) -> torch.Tensor:
        training = {"kind": "sgd", "batch_size": 4, "lr": 0.1} | client
        working = build_executor(small(1, client=training, selection={"kind": "uniform", "count": 1}), made)
        return working.execute(working.assign(Order("train", order.clients, {"params": start}))).payload["delta"][0]

    first = delta(made.initial(), steps=1)
    both = first + delta(made.initial() + first, steps=1, lr=0.05)
    assert torch.allclose(delta(made.initial(), epochs=2, local_schedule="linear"), both, rtol=0, atol=1e-14)
    assert torch.allclose(delta(made.initial(), steps=2, local_schedule="linear"), both, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("scaling", "power"), [("linear", 1.0), ("sqrt", 0.5)])
def test_a_step_is_scaled_by_how_full_its_batch_is(scaling: str, power: float) -> None:
    """Of 11, 3 and 7 examples batches of 8 have 8, 3 and 7."""
    one = {"epochs": None, "steps": 1, "batch_size": 8}
    plain, scaled = changes("stacked", **one), changes("stacked", **one, lr_scaling=scaling)
    ratio = (torch.tensor([8.0, 3.0, 7.0], dtype=torch.float64) / 8) ** power
    assert torch.allclose(scaled, ratio.unsqueeze(1) * plain, rtol=0, atol=1e-14)
    full = changes("stacked", **one | {"batch_size": "full"}, lr_scaling=scaling, reference_batch=4)
    whole = changes("stacked", **one | {"batch_size": "full"})
    ratio = (torch.tensor([11.0, 3.0, 7.0], dtype=torch.float64) / 4) ** power
    assert torch.allclose(full, ratio.unsqueeze(1) * whole, rtol=0, atol=1e-14)


def test_the_sums_of_rates_are_those_of_the_steps_that_were_taken() -> None:
    """What SCAFFOLD divides by: 6, 2 and 4 steps; linear factors of S steps sum to (S + 1) / 2."""
    training = LocalTraining(epochs=2, batch_size=4, lr=0.1, local_schedule=LocalLinear(), lr_scaling="linear")
    made = problem()
    working = build_executor(small(1, selection={"kind": "uniform", "count": 3}), made)
    job = working.assign(Order("train", torch.tensor([0, 2, 1]), {"params": made.initial()}))
    cohort = Cohort(made, working.network, working.streams, job, {})
    training.descend(cohort, made.initial())
    assert training.rates(cohort).tolist() == pytest.approx([0.1 * 3.5, 0.1 * 2.5, 0.1 * 0.75 * 1.5])


def test_a_rate_that_scales_beyond_what_rates_may_be_diverges() -> None:
    with pytest.raises(DivergedError, match=r"a step of 1\.1e"):
        changes("stacked", batch_size="full", lr=1e30, lr_scaling="linear", reference_batch=1)


@pytest.mark.parametrize("option", ["local_schedule", "lr_scaling", "inverse_decay"])
def test_fednova_refuses_rates_that_differ(option: str) -> None:
    values = {"local_schedule": LocalLinear(), "lr_scaling": "linear", "inverse_decay": 0.5}
    with pytest.raises(InputError, match=f"^{option} = .*: FedNova needs the same rate"):
        Sgd(epochs=1, **{option: values[option]}).check(frozenset({"report-nu"}))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"reference_batch": 8}, "reference_batch"), ({"lr_scaling": "sqrt", "batch_size": "full"}, "lr_scaling")],
)
def test_scaling_says_what_it_needs(options: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named} = "):
        LocalTraining(epochs=1, **options)
