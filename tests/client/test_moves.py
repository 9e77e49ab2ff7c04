"""Local training of some leaves alone: it is that of a model whose other parameters are frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import ROWS
from torch import Tensor, nn

import fedsim
from fedsim.client import Cohort, LocalTraining, NonNegativeFloat, Update, options
from fedsim.core.errors import BrokenPromiseError
from fedsim.engine.executor import Executor
from fedsim.exchange.messages import Order
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_executor
from fedsim.testing.problems import TRAINING, blobs, mlp, small_experiment

RULES = {
    row: tables["client"]
    for row, tables in ROWS.items()
    if "optimizer" in tables.get("client", {}) and len(tables) == 1
} | {"ivon": {**TRAINING, "optimizer": {"kind": "ivon", "samples": 2}}, "plain": TRAINING}
"""Clients of each rule."""
FIRST, SECOND = ("1.weight", "3.bias"), ("1.bias", "3.weight")
"""Leaves of both layers of 6-8-3."""


@options
class Part(LocalTraining):
    """Trains the leaves of some names; the server hears of the precision of each number, too, if that is known."""

    names: Any = ()
    """Of the leaves."""
    mu: NonNegativeFloat = 0.0
    """Factor of a proximal term."""

    def train(self, cohort: Cohort) -> Update:
        theta, layout = cohort.received("params"), cohort.network.layout
        moves = [name in self.names for name in layout.names] if self.names else None
        shift = self.mu * theta if self.mu else None
        found = self.descend(cohort, theta, decay=self.mu, shift=shift, change=True, moves=moves)
        told = {} if found.precision is None else {"precision": found.precision}
        return Update({"delta": found.params}, {"loss": found.loss, **{n: v.sum(dim=1) for n, v in told.items()}})


def problem(frozen: tuple[str, ...] = (), model: nn.Module | None = None, **settings: Any) -> Supervised:
    model = mlp(activation=nn.Tanh) if model is None else model
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return fedsim.supervised(**blobs(**settings), model=model, dtype=torch.float64, device="cpu")


def executed(
    own: Supervised, executor: str = "stacked", clients: Any = range(6), **client: Any
) -> tuple[Any, Executor]:
    """What a round of these clients comes to."""
    made = Part(**{name: value for name, value in client.items() if name != "kind"})
    experiment = small_experiment(1, client=made, engine={"executor": executor})
    found = build_executor(experiment, own)
    return found.execute(found.assign(Order("train", torch.tensor([*clients]), {"params": own.initial()}))), found


def leaves(own: Supervised, rows: Tensor) -> dict[str, Tensor]:
    return dict(zip(own.layout.names, own.layout.stack(rows).leaves, strict=True))


def assert_frozen(client: dict[str, Any], executor: str, names: tuple[str, ...], frozen: tuple[str, ...]) -> None:
    """Hold training of these names to that of a model whose others are frozen, and the others to their bits."""
    own, twin = problem(), problem(frozen)
    part, _ = executed(own, executor, names=names, **client)
    whole, _ = executed(twin, **client)
    found, wanted = leaves(own, part.payload["delta"]), leaves(twin, whole.payload["delta"])
    assert set(wanted) == set(names)
    for name in frozen:
        assert torch.equal(found[name], torch.zeros_like(found[name]))
    for name in names:
        torch.testing.assert_close(found[name], wanted[name], rtol=0.0, atol=1e-10)
        assert float(wanted[name].abs().max()) > 1e-5
    torch.testing.assert_close(part.metrics["loss"], whole.metrics["loss"], rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("row", RULES)
def test_a_rule_sees_only_the_leaves_that_move(row: str) -> None:
    """Its norms, products, draws and outputs are those of a model that has no others."""
    client = {"lr": None, **RULES[row], "weight_decay": 0.05, "mu": 0.3}
    assert_frozen(client, "stacked", FIRST, SECOND)


@pytest.mark.parametrize("row", ["egn", "sso"])
def test_what_is_a_function_of_outputs_is_one_of_these_leaves_by_autograd_too(row: str) -> None:
    assert_frozen({"lr": None, **RULES[row]}, "loop", FIRST, SECOND)


@pytest.mark.parametrize("executor", ["stacked", "loop", "fused"])
@pytest.mark.parametrize(
    "client",
    [
        {},
        {"weight_decay": 0.1, "mu": 0.5},
        {"clip_norm": 0.2, "mu": 0.5},
        {"inverse_decay": 0.5},
        {"lr_scaling": "linear", "batch_size": 32, "reference_batch": 16},
        {"optimizer": "adam", "lr": 0.01},
        {"optimizer": "lion", "lr": 0.01, "weight_decay": 0.5},
        {"optimizer": {"kind": "sgd", "momentum": 0.9, "nesterov": True}, "clip_norm": 0.5},
        {"optimizer": "dog", "lr": None},
        {"adversarial": {"kind": "standard", "attack": {"kind": "pgd", "epsilon": 0.3, "steps": 2, "domain": "none"}}},
        {"curriculum": {"floor": 2}},
    ],
    ids=lambda client: " ".join(client) or "plain",
)
def test_every_executor_leaves_the_others_alone(executor: str, client: dict[str, Any]) -> None:
    assert_frozen({**TRAINING, **client}, executor, SECOND, FIRST)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
def test_running_statistics_move_along(executor: str) -> None:
    model = [nn.Sequential(mlp()[1], nn.BatchNorm1d(8), nn.Tanh(), mlp()[3]) for _ in range(2)]
    own, twin = problem(model=model[0]), problem(("0.weight", "1.bias", "3.weight", "3.bias"), model[1])
    names = ("0.bias", "1.weight")
    part, _ = executed(own, executor, names=names, **TRAINING)
    whole, _ = executed(twin, **TRAINING)
    found, wanted = leaves(own, part.payload["delta"]), leaves(twin, whole.payload["delta"])
    for name in (*names, "1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[name], wanted[name], rtol=0.0, atol=1e-10)
        assert float(wanted[name].abs().max()) > 0.01 or name == "0.bias"  # which the layer takes away again
    assert float(found["3.weight"].abs().max()) == 0.0


def test_all_leaves_by_name_are_all_leaves() -> None:
    every = (*FIRST, *SECOND)
    for client in (TRAINING, {**TRAINING, "optimizer": "adam", "lr": 0.01}):
        named, whole = (executed(problem(), names=names, **client)[0] for names in (every, ()))
        assert torch.equal(named.payload["delta"], whole.payload["delta"])


def test_a_client_alone_has_the_bits_that_it_has_among_others() -> None:
    for client in (TRAINING, {**TRAINING, "optimizer": "adam", "lr": 0.01}, {**TRAINING, "clip_norm": 0.1}):
        every, _ = executed(problem(), names=FIRST, **client)
        for one in range(6):
            alone, _ = executed(problem(), names=FIRST, clients=[one], **client)
            assert torch.equal(alone.payload["delta"][0], every.payload["delta"][one])


def test_what_does_not_move_is_not_known_any_better() -> None:
    """The precisions that ivon learns are of what it trains, and 0 of the rest: of the whole they come to as much."""
    client = {**TRAINING, "optimizer": "ivon"}
    part, _ = executed(problem(), names=FIRST, **client)
    twin, _ = executed(problem(SECOND), **client)
    torch.testing.assert_close(part.metrics["precision"], twin.metrics["precision"])


def test_a_round_that_trains_nothing_breaks_a_promise() -> None:
    with pytest.raises(BrokenPromiseError, match="trains no parameter"):
        executed(problem(), names=("none",), **TRAINING)
