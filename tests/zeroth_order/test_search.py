"""Local search: the steps, the box, the rates, and what a client says that it will do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from probing import DEVICE, cohort_of
from torch import Tensor

from fedsim.core.errors import InputError
from fedsim.core.options import options
from fedsim.engine.executor import choose_network
from fedsim.exchange.messages import Cost, Order
from fedsim.nets.optimizers import Optimizer, Remembered, Step
from fedsim.nets.stack import Stack
from fedsim.problems.own_functions import black_box
from fedsim.testing.problems import small_problem
from fedsim.zeroth_order.estimator import Probe
from fedsim.zeroth_order.search import MEASURE, LocalSearch

C, D = 3, 2


@options
class Searching(LocalSearch):
    """A search that says what it costs, as clients must."""

    def cost(self, order: Order, examples: Tensor) -> Cost:
        """Nothing is asked."""
        return self.declared(order, examples, 0)


CENTERS = torch.tensor([[1.0, -2.0], [0.5, 0.5], [-3.0, 0.0]], dtype=torch.float64, device=DEVICE)


def bowls(clients: Tensor, x: Tensor) -> Tensor:
    return (x - CENTERS[clients].unsqueeze(1)).square().sum(dim=-1) / 2.0


def box(bounds: tuple[float, float] | None = None) -> Any:
    return black_box(bowls, dimension=D, clients=C, bounds=bounds, start=0.0, device=DEVICE)


def downhill(probe: Probe, z: Tensor) -> Tensor:
    return z - CENTERS


def searched(search: LocalSearch, direction: Callable[[Probe, Tensor], Tensor] = downhill, **problem: Any) -> Tensor:
    cohort = cohort_of(box(**problem))
    return search.search(cohort, cohort.received("params"), direction)


def test_sgd_goes_the_share_of_the_way_that_it_should() -> None:
    """z - c shrinks by 1 - lr a step: from 0, z = (1 - 0.9^4) c after four."""
    found = searched(Searching(steps=4, lr=0.1, optimizer="sgd"))
    assert torch.allclose(found, (1 - 0.9**4) * CENTERS, rtol=0, atol=1e-14)


def test_adam_is_the_optimizer_of_that_name() -> None:
    """Held to torch's own, over seven steps, with options that are not the defaults."""
    given = {"kind": "adam", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
    found = searched(Searching(steps=7, lr=0.05, optimizer=given))
    z = torch.zeros(C, D, dtype=torch.float64, device=DEVICE, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.05, betas=(0.8, 0.95), eps=1e-3)
    for _ in range(7):
        optimizer.zero_grad()
        ((z - CENTERS).square().sum() / 2).backward()
        optimizer.step()
    assert torch.allclose(found, z.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_step_is_kept_in_the_box(optimizer: str) -> None:
    """A search from 0 towards c in steps that are clamped each time; Adam's memory is of what it was given."""
    seen: list[Tensor] = []

    def watched(probe: Probe, z: Tensor) -> Tensor:
        seen.append(z.clone())
        return downhill(probe, z)

    found = searched(Searching(steps=20, lr=0.5, optimizer=optimizer), watched, bounds=(-1.0, 0.75))
    assert all(bool(((z >= -1.0) & (z <= 0.75)).all()) for z in (*seen, found))
    assert torch.equal(found[2, 0], torch.tensor(-1.0, dtype=torch.float64, device=DEVICE))
    free = searched(Searching(steps=20, lr=0.5, optimizer=optimizer, project=False), bounds=(-1.0, 0.75))
    assert float(free[2, 0]) < -1.5


def test_steps_and_draws_are_numbered() -> None:
    """Every step's directions are its own; the same step's are the same again."""
    drawn: list[Tensor] = []

    def watched(probe: Probe, z: Tensor) -> Tensor:
        assert probe.step == len(drawn)
        drawn.append(probe.directions("gaussian", 1))
        return torch.zeros_like(z)

    searched(Searching(steps=4), watched)
    assert len({tuple(rows.flatten().tolist()) for rows in drawn}) == 4
    again, drawn[:] = list(drawn), []
    searched(Searching(steps=4), watched)
    assert all(torch.equal(one, other) for one, other in zip(again, drawn, strict=True))


def test_the_rate_follows_the_schedule() -> None:
    """gamma^r in round r = 0, and in round 3 by the order's number."""
    search = Searching(lr=0.4, schedule={"kind": "exponential", "gamma": 0.5})
    cohort = cohort_of(box())
    assert search.rate(cohort) == 0.4
    assert search.rate(cohort_of(box(), round=3)) == 0.05
    assert not search.same_every_round
    assert Searching().same_every_round


def test_steps_are_about_batches_or_about_everything() -> None:
    """Independent batches of two, counted as steps taken; "full" takes none."""
    problem = small_problem()
    for batch_size, steps in ((2, 3), ("full", 0)):
        cohort = cohort_of(problem, choose_network(problem.model, problem.data, "stacked")[1])
        seen: list[Any] = []

        def watched(probe: Probe, z: Tensor, seen: list[Any] = seen) -> Tensor:
            seen.append(probe.batch)
            return torch.zeros_like(z)

        search = Searching(steps=3, batch_size=batch_size)
        search.search(cohort, cohort.received("params"), watched)
        assert cohort.steps_taken.tolist() == [steps] * 6
        if batch_size == "full":
            assert seen == [None] * 3
        else:
            assert [tuple(batch.y.shape) for batch in seen] == [(6, 2)] * 3
            assert not torch.equal(seen[0].x, seen[1].x)


def test_a_batch_and_everything_have_the_values_that_they_should() -> None:
    """Values of the whole are mean losses over a client's own examples, as the problem itself measures them."""
    problem = small_problem()
    cohort = cohort_of(problem, choose_network(problem.model, problem.data, "stacked")[1])
    x = problem.initial()
    found = cohort.query(x.expand(6, 1, -1))[:, 0]
    assert torch.allclose(found.cpu(), problem.losses(x, cohort.clients)[:, 0].cpu(), rtol=1e-12)


def test_measuring_gives_values_that_no_paper_counts() -> None:
    candidates = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float64, device=DEVICE)
    cohort = cohort_of(box(), action=MEASURE, payload={"candidates": candidates})
    found = Searching().measure(cohort).payload["values"]
    # |c|^2 / 2 = 2.5, 0.25, 4.5 at the origin; |(1, -2) - c|^2 / 2 = 0, (0.25 + 6.25) / 2, (16 + 4) / 2
    wanted = [[2.5, 0.0], [0.25, 3.25], [4.5, 10.0]]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64, device=DEVICE), rtol=1e-13)
    assert cohort.queries.tolist() == cohort.extra_queries.tolist() == [2, 2, 2]


def test_what_it_declares() -> None:
    examples, params = torch.tensor([5, 3]), torch.zeros(7)
    train, measure = (
        Order("train", examples, {"params": params}),
        Order(MEASURE, examples, {"candidates": params.view(1, 7)}),
    )
    cost = Searching(steps=4).declared(train, examples, 44)
    assert (cost.steps.tolist(), cost.bytes_up, cost.queries) == ([0, 0], 28, 44)
    assert Searching(steps=4, batch_size=2).declared(train, examples, 44).steps.tolist() == [4, 4]
    cost = Searching(steps=4, batch_size=2).declared(measure, examples, 0)
    assert (cost.steps.tolist(), cost.bytes_up, cost.queries) == ([0, 0], 4, 1)


@pytest.mark.parametrize("option", ["beta1", "beta2", "epsilon"])
def test_options_of_adam_are_of_adam_only(option: str) -> None:
    with pytest.raises(InputError, match=rf"optimizer\.{option} = 0.5: no such option"):
        Searching(optimizer={"kind": "sgd", option: 0.5})
    with_it = {"kind": "adam", "beta2": 0.999, option: 0.5}
    found, other = searched(Searching(steps=3)), searched(Searching(steps=3, optimizer=with_it))
    assert not torch.allclose(found, other, rtol=1e-3)
    assert math.isfinite(float(other.sum()))


@options
class Wandering(Optimizer):
    """Goes by named draws, whatever the direction, and sends half of where it is."""

    asked: str = "noise"

    @property
    def needs(self) -> frozenset[Any]:
        """As the option says, and another end."""
        return frozenset({self.asked, "end"})

    def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
        """Move."""
        assert step.noise is not None
        step.move(rows, step.noise.normal("way", rows))

    def end(self, memory: Remembered, rows: Stack) -> Stack:
        """Half of it."""
        return Stack([leaf / 2.0 for leaf in rows.leaves])


def test_rules_of_any_kind_step_along_directions_with_what_a_search_has() -> None:
    z, cohort = searched(Searching(steps=3, lr=1.0, optimizer=Wandering())), cohort_of(box())
    ways = [cohort.streams.normal("optimizer/way", cohort.clients, (D,), step=step, dtype=z.dtype) for step in range(3)]
    assert torch.equal(z, -(ways[0] + ways[1] + ways[2]) / 2.0)
    for need, said in (("again", "several gradients a step"), ("state", "something that clients keep")):
        with pytest.raises(InputError, match=rf"optimizer = .*: asks for {said}.*, which a search .* does not give"):
            Searching(optimizer=Wandering(asked=need))


def test_a_direction_that_somebody_holds_is_not_written_over() -> None:
    """Nesterov's form writes over what it is given."""
    held: list[Tensor] = []

    def along(probe: Probe, z: Tensor) -> Tensor:
        held.append(downhill(probe, z))
        return held[-1]

    nesterov = {"kind": "sgd", "momentum": 0.5, "nesterov": True}
    searched(Searching(steps=1, lr=0.1, optimizer=nesterov), along)
    assert torch.equal(held[0], -CENTERS)


def test_rules_see_the_layers_of_a_model() -> None:
    """A rule that asks for shapes has those of the parameters; of a black box one vector."""
    seen: list[list[tuple[int, ...]]] = []

    @options
    class Looking(Optimizer):
        """Looks."""

        def step(self, memory: Remembered, rows: Stack, step: Step) -> None:
            """Look, and move."""
            seen.append([tuple(leaf.shape) for leaf in rows.leaves])
            step.move(rows, step.gradient)

    problem = small_problem()
    cohort = cohort_of(problem, choose_network(problem.model, problem.data, "stacked")[1])
    search = Searching(steps=1, lr=1.0, optimizer=Looking())
    start = cohort.received("params")
    moved = search.search(cohort, start, lambda probe, z: torch.ones_like(z))
    assert torch.equal(moved, (start - 1.0).expand(6, -1))
    searched(Searching(steps=1, optimizer=Looking()))
    assert seen[1] == [(C, D)]
    assert [shape[1:] for shape in seen[0]] == list(cohort.network.layout.shapes)
