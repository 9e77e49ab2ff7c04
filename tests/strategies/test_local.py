"""Local training alone: by hand, with nothing that crosses; and what it is refused with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedsim.core.errors import FedsimError, InputError
from fedsim.engine.executor import Executor
from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.personal import own_models
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import TRAINING, blobs, mlp, small_experiment

LOCAL = {"strategy": "local", "client": {"kind": "local", **TRAINING}}


def problem(**settings: Any) -> Supervised:
    """Clients who are judged on examples that are held out."""
    data = blobs(**settings)
    tests = np.array_split(np.arange(20), len(data["clients"]))
    return supervised(**data, test_clients=tests, model=mlp(), dtype=torch.float64, device="cpu")


def simulation(rounds: int = 3, own: Supervised | None = None, **tables: Any) -> Simulation:
    return build_simulation(small_experiment(rounds, **{**LOCAL, **tables}), own or problem())


def models(run: Simulation) -> Tensor:
    """Those of all clients, [N, d]."""
    parts = run.parts
    assert isinstance(parts.problem, Supervised)
    owned = own_models(parts.engine, parts.problem, parts.strategy, run.state, None)
    return owned.models(torch.arange(parts.problem.num_clients)).flat()


def test_each_client_goes_on_from_where_it_was():
    """Two rounds of two full batches: y <- y - 0.1 grad, on its own examples alone."""
    own = problem(sizes=(11, 4))
    client = {"kind": "local", "epochs": 2, "batch_size": "full", "lr": 0.1}
    for executor in ("stacked", "loop", "fused"):
        engine, selection = {"executor": executor}, {"kind": "uniform", "count": 2}
        run = simulation(2, own, client=client, engine=engine, selection=selection)
        rows = list(run)
        assert [(row["bytes_up"], row["bytes_down"]) for row in rows] == [(0, 0), (0, 0)]
        for place, examples in enumerate(own.data.order.split([11, 4])):
            model = mlp().double()
            for _ in range(4):
                loss = functional.cross_entropy(model(own.data.x[examples]), own.data.y[examples])
                for part, gradient in zip(
                    model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True
                ):
                    part.data -= 0.1 * gradient
            expected = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
            assert torch.allclose(models(run)[place], expected, rtol=0, atol=1e-12)
        assert torch.equal(run.state.params, own.initial())


def test_who_is_not_chosen_keeps_its_model_to_the_bit():
    run = simulation(4, selection={"kind": "uniform", "count": 2})
    before = models(run)
    for _ in range(4):
        took = run.parts.engine.trace.participation.copy()
        run.step()
        after, again = models(run), torch.tensor(run.parts.engine.trace.participation) > torch.tensor(took)
        assert again.sum() == 2
        assert torch.equal((after != before).any(dim=1), again)
        before = after


def test_a_model_that_is_not_finite_is_left_where_it_was(monkeypatch):
    """There is no reply to see it in: the client has failed, and begins again from the model before."""
    act = Executor.act

    def broken(self: Any, part: Any, state: Any) -> Any:
        found = act(self, part, state)
        found.state["model"][part.clients == 2] = torch.nan
        finite = found.finite & (part.clients != 2)
        return type(found)(part.clients, found.update, found.state, finite, found.nbytes, found.queries, found.said)

    run = simulation(2, selection={"kind": "uniform", "fraction": 1.0})
    run.step()
    before = models(run)
    monkeypatch.setattr(Executor, "act", broken)
    run.step()
    assert torch.equal(models(run)[2], before[2])
    assert run.parts.engine.ledger.failed == 1


def test_training_that_goes_astray_fails():
    """Each step takes a weight to -1e6 times itself, which is too much after 52 of them."""
    run = simulation(5, client={"kind": "local", "steps": 60, "lr": 1.0, "weight_decay": 1e6})
    with pytest.raises(FedsimError, match=r"lower client\.lr"):
        list(run)
    assert run.parts.engine.ledger.failed == run.parts.engine.ledger.clients > 0
    assert torch.equal(models(run)[0], run.parts.problem.initial())


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"transforms": [{"kind": "clip", "max_norm": 0.1}]}, "nothing is sent"),
        ({"transforms": [{"kind": "noise", "std": 0.1, "vectors": ["delta"]}]}, "nothing is sent"),
        ({"order_transforms": [{"kind": "noise", "std": 0.1}]}, "nothing is sent"),
        ({"aggregation": "median"}, "averages nothing"),
        ({"selection": {"kind": "power_of_choice", "count": 2, "pool": 4}}, "a model for all"),
        ({"selection": {"kind": "oort", "count": 2}}, "a model for all"),
        ({"client": {"kind": "sgd", **TRAINING}}, "params"),
        ({"strategy": "fedavg"}, "delta"),
        ({"client": {**LOCAL["client"], "curriculum": {"floor": 1}}}, "client.curriculum.score = global: .*sends none"),
    ],
)
def test_what_needs_something_that_crosses_is_refused(tables, why):
    with pytest.raises(InputError, match=why) as refused:
        simulation(**tables)
    assert "\n" not in str(refused.value)
