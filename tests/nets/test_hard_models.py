"""Models and data that are easy to get wrong: stacked must equal the loop, or the model be refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.nets.dropout import Draw, drawing
from fedsim.nets.prepared import prepare
from fedsim.running.build import build_simulation
from fedsim.testing.problems import DEVICE, blobs
from fedsim.testing.problems import small_experiment as small


def seeded(make: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def repeated() -> nn.Module:
    act = nn.ReLU()
    return nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 3))


def tied() -> nn.Module:
    twice = nn.Linear(6, 6)
    return nn.Sequential(twice, nn.Tanh(), twice, nn.Linear(6, 3))


def tied_weights() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.requires_grad_(False)
    return model


class Scaled(nn.Sequential):
    """A sequence with a forward pass of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 3 + 1


class Usual(nn.Module):
    """The network that most people write: layers as attributes, one of them called dropout, one never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(torch.relu(self.first(x))))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.scale = nn.Linear(6, 3), nn.Linear(2, 2), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x) * self.scale


class Normed(nn.Module):
    """Batch normalisation in a forward pass of its own, which goes through `vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


class Item(nn.Module):
    """What vmap cannot take: a number that decides the way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if float(x.sum()) > -1e9 else x[:, :3]


def final(model: nn.Module, executor: str, **client: Any) -> torch.Tensor:
    problem = fedsim.supervised(**blobs(), model=model, dtype=torch.float64, device=DEVICE)
    training = {"kind": "sgd", "epochs": 2, "batch_size": 4, "lr": 0.1} | client
    simulation = build_simulation(small(2, client=training, engine={"executor": executor}), problem)
    for _ in simulation:
        pass
    assert not torch.equal(simulation.state.params, problem.initial())
    return simulation.state.params


@pytest.mark.parametrize("make", [repeated, tied, tied_weights, frozen, Unused, Usual, Normed])
def test_stacked_equals_loop(make):
    for client in ({}, {"clip_norm": 0.2}):
        stacked, loop = (final(seeded(make), executor, **client) for executor in ("stacked", "loop"))
        assert torch.allclose(stacked, loop, rtol=0, atol=1e-9)


def test_a_sequence_with_its_own_forward_is_not_a_chain():
    model = seeded(lambda: Scaled(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert torch.allclose(final(model, "stacked"), final(model, "loop"), rtol=0, atol=1e-9)


def test_frozen_parameters_stay_and_are_not_sent():
    model = seeded(frozen)
    problem = fedsim.supervised(**blobs(), model=model, dtype=torch.float64, device=DEVICE)
    assert problem.dimension == 8 + 8 * 3 + 3
    result = fedsim.run(small(1), problem=problem, save=False)
    trained = result.model()
    assert torch.equal(trained[0].weight.cpu(), model[0].weight.double())
    assert not torch.equal(trained[2].weight.cpu(), model[2].weight.double())


class Wrong(torch.autograd.Function):
    """A function whose rule for `vmap` says something else."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * 1.0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
        return Wrong.apply(x * 3.0), in_dims[0]


class Otherwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Wrong.apply(self.layer(x))


@pytest.mark.parametrize(
    ("make", "words"), [(Item, "cannot be stacked"), (Otherwise, "gives other numbers in a stack")]
)
def test_what_cannot_be_stacked_runs_one_by_one_under_auto(make, words, capsys):
    problem = fedsim.supervised(**blobs(), model=seeded(make), device=DEVICE)
    simulation = build_simulation(small(1), problem)
    assert simulation.parts.engine.executor.name == "loop"
    assert re.search(f"^fedsim: clients are executed one at a time: .*{words}", capsys.readouterr().err)
    simulation.step()
    with pytest.raises(InputError, match=r"engine\.executor"):
        build_simulation(small(1, engine={"executor": "stacked"}), problem)


def test_two_calls_of_a_dropout_layer_draw_two_masks():
    layer = prepare(nn.Sequential(nn.Dropout(0.5)))[0]
    with drawing(Draw(Streams(0), torch.arange(2), 0, 0), stacked=True):
        first, second = layer(torch.ones(2, 100)), layer(torch.ones(2, 100))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_dropout_layer_that_keeps_nothing_gives_zeros(inplace):
    layer = prepare(nn.Sequential(nn.Dropout(1.0, inplace)))[0]
    with drawing(Draw(Streams(0), torch.arange(2), 0, 0), stacked=True):
        assert layer(torch.ones(2, 3)).tolist() == [[0.0] * 3] * 2


def test_one_clients_bad_example_is_its_own():
    """Example 0 of the data is NaN; only its owner fails, in a stack as in the loop."""
    for executor in ("stacked", "loop"):
        problem = fedsim.supervised(**blobs(), model=seeded(repeated), dtype=torch.float64, device=DEVICE)
        problem.data.x[0] = torch.nan
        experiment = small(2, selection={"kind": "uniform", "fraction": 1.0}, engine={"executor": executor})
        rows = list(build_simulation(experiment, problem))
        assert [row["failed"] for row in rows] == [1, 1]


def test_a_client_that_failed_keeps_the_state_it_had():
    """Its data are NaN in the first round and mended after it: then it works again."""
    problem = fedsim.supervised(**blobs(), model=seeded(repeated), dtype=torch.float64, device=DEVICE)
    mended = problem.data.x.clone()
    problem.data.x[0] = float("nan")
    experiment = small(
        3,
        strategy={"kind": "scaffold"},
        client={"kind": "scaffold", "epochs": 1, "batch_size": 4, "lr": 0.1},
        selection={"kind": "uniform", "fraction": 1.0},
    )
    simulation = build_simulation(experiment, problem)
    assert simulation.step()["failed"] == 1
    problem.data.x.copy_(mended)
    assert simulation.step()["failed"] == 0
    control = simulation.state.memory["control"]
    store = simulation.parts.engine.executor.store.snapshot()["control"]
    assert torch.isfinite(store).all()
    # The server's control variate stays the mean of the clients'.
    assert torch.allclose(control, store.mean(dim=0), atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": blobs()["y"][:, None]}, "shape"),
        ({"loss": "cross_entropy", "y": blobs()["y"] + 0.5, "test": None}, "real numbers"),
        ({"y": np.array(["a"] * 37)}, "numbers"),
        ({"clients": [[0.7, 1.9]]}, "clients"),
    ],
)
def test_data_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        fedsim.supervised(**(blobs() | changes), model=seeded(repeated), device=DEVICE)


def test_whole_numbers_can_be_targets_of_a_regression():
    model = seeded(lambda: nn.Linear(6, 1))
    problem = fedsim.supervised(**blobs(), model=model, loss="squared_error", device=DEVICE)
    assert problem.evaluates_clients("auto") is False
    assert fedsim.run(small(1), problem=problem, save=False).history.last("test_loss") > 0


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.layer(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Counting, "buffer"),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True)),
            "track_running",
        ),
        (lambda: nn.Flatten(), "no parameter"),
    ],
)
def test_models_that_share_what_clients_must_not_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        fedsim.supervised(**blobs(), model=seeded(make), device=DEVICE)


class Mode(nn.Module):
    """Another output in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * (0.0 if self.training else 1.0)


def test_evaluation_is_in_evaluation_mode():
    problem = fedsim.supervised(**blobs(), model=seeded(Mode), dtype=torch.float64, device=DEVICE)
    x, y = problem.x_test, problem.y_test
    with torch.no_grad():
        expected = nn.functional.cross_entropy(problem.module(problem.initial())(x), y)
    assert problem.evaluate(problem.initial(), clients=False)["test_loss"] == pytest.approx(float(expected))


def test_a_robust_aggregator_with_too_few_finite_replies_ends_the_run_with_what_was_logged():
    problem = fedsim.supervised(**blobs(), model=seeded(repeated), device=DEVICE)
    problem.data.x[:22] = torch.nan  # the first three clients
    experiment = small(3, selection={"kind": "uniform", "fraction": 1.0}, aggregation={"kind": "krum", "malicious": 1})
    result = fedsim.run(experiment, problem=problem, save=False)
    assert result.status == "diverged"
    assert "3 updates not finite" in result.reason


def test_a_rate_of_zero_learns_nothing_and_breaks_nothing():
    """A schedule that has ended: SCAFFOLD's control variates and the model stay as they are."""
    problem = fedsim.supervised(**blobs(), model=seeded(repeated), dtype=torch.float64, device=DEVICE)
    client = {"epochs": 1, "batch_size": 4, "lr": 0.1, "schedule": {"kind": "linear", "rounds": 1}}
    for strategy, kind in (("scaffold", "scaffold"), ("fednova", "sgd")):
        experiment = small(3, strategy={"kind": strategy}, client={"kind": kind} | client)
        simulation = build_simulation(experiment, problem)
        simulation.step()
        after_one = simulation.state.params
        simulation.step()
        assert torch.equal(simulation.state.params, after_one)


def test_a_callback_sees_a_copy():
    problem = fedsim.supervised(**blobs(), model=seeded(repeated), device=DEVICE)
    result = fedsim.run(small(2), problem=problem, save=False, callbacks=[lambda now: now.params.zero_()])
    assert float(result.params.abs().sum()) > 0


def flatten_within() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].register_forward_hook(lambda layer, inputs, output: output * 2)
    return model


def same_dropout() -> nn.Module:
    drop = nn.Dropout(0.3)
    return nn.Sequential(nn.Linear(6, 8), drop, nn.Linear(8, 8), drop, nn.Linear(8, 3))


@pytest.mark.parametrize(("make", "shape"), [(flatten_within, (2, 3)), (hooked, (6,)), (same_dropout, (6,))])
def test_stacked_equals_loop_in_forms_that_are_easy_to_miss(make, shape):
    found = []
    for executor in ("stacked", "loop"):
        problem = fedsim.supervised(**blobs(shape=shape), model=seeded(make), dtype=torch.float64, device=DEVICE)
        simulation = build_simulation(small(2, engine={"executor": executor}), problem)
        list(simulation)
        found.append(simulation.state.params)
    assert torch.allclose(*found, rtol=0, atol=1e-9)


class Mixing(nn.Module):
    """Centres a batch: what an example gives depends on its neighbours, padding among them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x - x.mean(dim=0))


def test_a_model_that_mixes_examples_is_refused():
    with pytest.raises(InputError, match="others of the batch"):
        fedsim.supervised(**blobs(), model=seeded(Mixing), device=DEVICE)


def test_a_frozen_model_comes_back_whole_from_its_folder(tmp_path):
    model = seeded(frozen)
    problem = fedsim.supervised(**blobs(), model=model, dtype=torch.float64, device=DEVICE)
    result = fedsim.run(small(1), problem=problem, out=tmp_path / "run")
    from fedsim.problems.modules import load_start

    saved = load_start(tmp_path / "run" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    with torch.no_grad():
        model[0].weight.fill_(7.0)
    other = fedsim.supervised(**blobs(), model=model, dtype=torch.float64, device=DEVICE)
    other.start_from(saved)
    assert torch.equal(other.initial(), result.params)
    assert torch.equal(other.module(other.initial())[0].weight, result.model()[0].weight)


def test_pool_threads_keep_to_one_core():
    from fedsim.parallel.cores import spread

    assert spread(lambda _: torch.get_num_threads(), range(8)) == [1] * 8
