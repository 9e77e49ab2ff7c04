"""Compiled values held to the modules' own, to the stack, and to themselves in any company and on any cores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import fedsim
import fedsim.engine.executor as executors
from fedsim.core.streams import Streams
from fedsim.engine.cohort import Cohort
from fedsim.engine.executor import choose_network
from fedsim.engine.job import Job
from fedsim.exchange.messages import Cost, Order
from fedsim.nets import fused as module
from fedsim.nets.descent import Queries
from fedsim.nets.fused import ACTIVATIONS, EXAMPLES, Fused, evaluates, fused
from fedsim.nets.losses import CrossEntropy, LogCosh, Loss, SquaredError
from fedsim.nets.stack import Layout
from fedsim.running.build import build_executor
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

pytest.importorskip("numba")  # which has no wheels for some machines
pytestmark = pytest.mark.xdist_group("fused")  # so that one process compiles
COUNTS = (1, 5, EXAMPLES, EXAMPLES + 1, 2 * EXAMPLES + 7)
"""Examples of each client, some of them more than are looked at together."""
Q = 3


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(activation: nn.Module, *sizes: int) -> nn.Sequential:
    """Linear layers of these sizes, the second without a bias."""
    layers: list[nn.Module] = []
    for number in range(len(sizes) - 1):
        linear = nn.Linear(sizes[number], sizes[number + 1], bias=number != 1, dtype=torch.float64)
        layers += [linear, activation]
    return nn.Sequential(*layers[:-1])


def asked(model: nn.Sequential, loss: Loss) -> tuple[Fused, Queries]:
    """The loop of a model, and points and examples of clients that have them in no order."""
    layout, inputs, outputs = Layout.of(dict(model.named_parameters())), model[0].in_features, model[-1].out_features
    count = torch.tensor(COUNTS)
    total = int(count.sum())
    x = normal(total, inputs, seed=1)
    y = torch.arange(total) % outputs if isinstance(loss, CrossEntropy) else 2.0 * normal(total, seed=2)
    index = torch.randperm(total, generator=torch.Generator().manual_seed(3))
    points = normal(len(COUNTS), Q, layout.dimension, seed=4) / 3
    return fused(model, layout, loss, x, y), Queries(points, x, y, index, count.cumsum(0) - count, count)


def by_module(model: nn.Sequential, loss: Loss, queries: Queries) -> torch.Tensor:
    """The same values from the module itself."""
    found = queries.points.new_empty(queries.points.shape[:2])
    for client, (begin, count) in enumerate(zip(queries.begin.tolist(), queries.count.tolist(), strict=True)):
        own = queries.index[begin : begin + count]
        for place in range(found.shape[1]):
            torch.nn.utils.vector_to_parameters(queries.points[client, place], model.parameters())
            with torch.no_grad():
                found[client, place] = loss.examples(model(queries.x[own]), queries.y[own]).mean()
    return found


def assert_right(model: nn.Sequential, loss: Loss) -> None:
    loop, queries = asked(model, loss)
    assert torch.allclose(loop.values(queries), by_module(model, loss, queries), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind):
    assert_right(chain(kind(0.3) if kind in (nn.LeakyReLU, nn.ELU) else kind(), 6, 17, 5, 3), CrossEntropy())


@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(), SquaredError(), LogCosh(), CrossEntropy(label_smoothing=0.2)],
    ids=lambda loss: type(loss).__name__,
)
def test_losses(loss):
    assert_right(chain(nn.Tanh(), 6, 8, 4 if isinstance(loss, CrossEntropy) else 1), loss)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (16, 4), (17, 33, 5), (40, 7, 31, 10)], ids=str)
def test_sizes_that_fill_no_vector(sizes):
    assert_right(chain(nn.ReLU(), *sizes), CrossEntropy())


def test_points_that_all_share_are_read_where_they_are():
    loop, queries = asked(chain(nn.ReLU(), 6, 9, 4), CrossEntropy())
    shared = queries.points[2].expand(len(COUNTS), -1, -1)
    copied = loop.values(replace(queries, points=shared.clone()))
    assert torch.equal(loop.values(replace(queries, points=shared)), copied)
    assert not torch.equal(copied, loop.values(queries))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_cores_changes_no_bit(dtype, monkeypatch):
    loop, queries = asked(chain(nn.GELU(), 20, 33, 10), CrossEntropy())
    queries = replace(queries, points=queries.points.to(dtype), x=queries.x.to(dtype))
    whole = loop.values(queries)
    seen = []
    monkeypatch.setattr(module, "WORTH_A_CORE", 0)
    monkeypatch.setattr(module, "spread", lambda work, parts: [*map(work, reversed(parts)), seen.append(len(parts))])
    for count in (1, 2, 5):
        monkeypatch.setattr(module, "cores", lambda: count)  # noqa: B023
        assert torch.equal(loop.values(queries), whole)
    assert seen == [4, 8, len(COUNTS) * Q]


def test_a_value_is_the_same_in_any_company():
    loop, queries = asked(chain(nn.ReLU(), 6, 9, 4), CrossEntropy())
    whole = loop.values(queries)
    for client in range(len(COUNTS)):
        own = slice(client, client + 1)
        alone = replace(queries, points=queries.points[own, 1:], begin=queries.begin[own], count=queries.count[own])
        assert torch.equal(loop.values(alone), whole[own, 1:])


def test_what_is_no_number_stays_with_its_query():
    loop, queries = asked(chain(nn.ReLU(), 6, 9, 4), CrossEntropy())
    x, points = queries.x.clone(), queries.points.clone()
    begin, count = int(queries.begin[1]), int(queries.count[1])
    x[queries.index[begin : begin + count], 2] = torch.inf
    points[3, 1] = torch.nan
    clean, found = loop.values(queries), loop.values(replace(queries, x=x, points=points))
    bad = torch.zeros_like(clean, dtype=torch.bool)
    bad[1], bad[3, 1] = True, True
    assert not torch.isfinite(found[bad]).any()
    assert torch.equal(found[~bad], clean[~bad])


def cohort(executor: Any, dtype: torch.dtype) -> Cohort:
    problem = small_problem(dtype)
    clients = torch.arange(problem.num_clients)
    order = Order("train", clients, {"params": problem.initial()})
    job = Job((order,), None, clients, Cost(torch.zeros_like(clients), {}), 0)
    return Cohort(problem, choose_network(problem.model, problem.data, executor)[1], Streams(0), job, {})


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_cohorts_get_the_values_of_the_stack_and_of_the_loop(batch_size):
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        found = []
        for executor in ("fused", "stacked", "loop"):
            own = cohort(executor, dtype)
            batch = None if batch_size is None else next(own.batches(steps=1, batch_size=batch_size, padded=True))
            points = normal(len(own), 2, own.dimension).to(dtype)
            found.append(own.query(points, batch))
            if batch is None:
                some = torch.tensor([4, 1])
                assert torch.equal(own.query(points[some], rows=some), found[-1][some])
            else:
                one = own.evaluate(own.stack(points[:, 1]), batch)
                assert torch.allclose(one, found[-1][:, 1], rtol=0 if executor == "fused" else tolerance, atol=0)
            assert own.queries.tolist() != [0] * len(own)
        for other in found[1:]:
            assert torch.allclose(found[0], other, rtol=tolerance, atol=tolerance)


def test_models_beyond_the_cache_and_losses_of_a_batch_are_evaluated_in_the_stack(monkeypatch):
    """By a loop that would say so."""

    class Doubled(CrossEntropy):
        def examples(self, outputs, targets):
            return 2.0 * super().examples(outputs, targets)

    own, stacked = cohort("fused", torch.float64), cohort("stacked", torch.float64)
    batch = next(own.batches(steps=1, batch_size=3, padded=True))
    points = normal(len(own), 2, own.dimension)
    other = replace(batch, loss=Doubled())
    assert torch.equal(own.query(points, other), stacked.query(points, other))
    called = []
    monkeypatch.setattr(Fused, "values", lambda self, queries: called.append(queries) or points[..., 0])
    own.query(points)
    assert len(called) == 1
    monkeypatch.setattr(module, "IN_CACHE", own.dimension - 1)
    large = cohort("fused", torch.float64)
    assert torch.equal(large.query(points), stacked.query(points))
    assert len(called) == 1


def test_networks_with_convolutions_are_evaluated_in_the_stack():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double()
    layout = Layout.of(dict(model.named_parameters()))
    assert not fused(model, layout, CrossEntropy(), normal(4, 1, 6, 6), torch.arange(4) % 3).evaluates
    assert not evaluates(model, layout)


def test_auto_compiles_queries_that_are_worth_it(monkeypatch):
    """Of 6 clients with 37 examples, 83 multiply-adds each: 5 steps with a base and 4 directions are 25 values."""

    def chosen(**client: Any) -> str:
        table = {"kind": "fedzo", "steps": 5, "estimator": {"kind": "differences", "count": 4}} | client
        made = small(1, strategy="fedzo", client=table, selection={"kind": "uniform", "fraction": 1.0})
        return build_executor(made, problem).name

    problem = small_problem()
    monkeypatch.setattr(executors, "WORTH_COMPILING", 37 * 83 * 25)
    assert chosen() == "fused"
    assert chosen(steps=4) == "stacked"
    assert chosen(batch_size=2) == "stacked"
    # Derivatives in forward mode are no values, however many there are.
    assert chosen(estimator={"kind": "forward_gradient", "count": 9}) == "stacked"
    monkeypatch.setattr(module, "IN_CACHE", problem.dimension - 1)
    assert chosen() == "stacked"


def test_a_run_with_queries_is_that_of_the_stack():
    table = {"kind": "fedzo", "steps": 3, "batch_size": 2, "estimator": {"kind": "differences", "count": 4}}

    def ran(executor: str) -> fedsim.Result:
        made = small(2, strategy="fedzo", client=table, engine={"executor": executor})
        return fedsim.run(made, problem=small_problem(), save=False)

    found, stacked = ran("fused"), ran("stacked")
    assert torch.allclose(found.params, stacked.params, rtol=0, atol=1e-10)
    assert [row["queries"] for row in found.history] == [row["queries"] for row in stacked.history]
