"""What a strategy and a client are made of: bases with defaults, of which nothing is misspelt in silence."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

import fedsim
from clients.sgd import Sgd
from clients.values import Values
from fedsim.client import LocalTraining, Streams
from fedsim.core.errors import InputError
from fedsim.server import All, Averaging, Order, PositiveFloat, ServerState, Strategy, options
from fedsim.testing import small_problem
from strategies.fedavg import FedAvg


@pytest.mark.parametrize("name", ["chek", "checks", "seded", "plan_", "aggregate", "unresumabel"])
def test_a_strategys_member_that_is_nearly_called_like_one_is_refused(name):
    with pytest.raises(InputError, match=f"^Mine = {name}: nobody asks a Strategy for that; write "):
        type("Mine", (FedAvg,), {name: lambda self: None})


@pytest.mark.parametrize("name", ["accept", "states", "same_every_rounds", "value_only", "view", "operation"])
def test_a_clients_member_that_is_nearly_called_like_one_is_refused(name):
    with pytest.raises(InputError, match=f"^Mine = {name}: nobody asks a Client for that; write "):
        type("Mine", (LocalTraining,), {name: lambda self: None})


def test_what_overrides_something_or_is_an_option_or_private_is_called_as_it_likes():
    class Mine(Averaging):
        checks: PositiveFloat = 1.0
        _plan: ClassVar[int] = 0

        def check(self, at_once, population, steady):
            """Overrides."""

    class Further(Mine):
        checks: ClassVar[float] = 2.0

    assert Further.checks == 2.0


class Plain:
    """Everything that a strategy must have, but not its base."""

    down: ClassVar[frozenset[str]] = frozenset({"params"})
    up: ClassVar[frozenset[str]] = frozenset({"delta"})

    def init(self, problem):
        return ServerState(problem.initial())

    def ask(self, state, chosen):
        return Order("train", chosen, {"params": state.params}, round=state.round), All()

    def tell(self, state, replies):
        return state, {}, True


PlainOptions = options(type("PlainOptions", (Plain,), {"__module__": __name__}))
Unfinished = options(type("Unfinished", (Strategy,), {"__module__": __name__, "ask": Plain.ask}))


def test_a_class_without_the_base_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^strategy\.kind = .*make it a subclass of fedsim\.server\.Strategy$"):
        fedsim.experiment(strategy={"kind": f"{__name__}:PlainOptions"})


def test_what_a_subclass_leaves_out_is_said_in_one_line():
    with pytest.raises(InputError, match=r"^strategy\.kind = .*: it has no down, up, init, tell, which all strategies"):
        fedsim.experiment(strategy={"kind": f"{__name__}:Unfinished"})


def test_the_plain_round_sends_the_model_and_its_settings():
    """Two clients of weights 1/4 and 3/4; a setting is among the names that go down."""

    @options
    class Told(Averaging):
        def config(self):
            return {"a-setting": 3}

    strategy, problem = Told(), small_problem()
    assert strategy.down == {"params", "a-setting"}
    assert strategy.up == {"delta"}
    state = strategy.init(problem)
    order, window = strategy.ask(state, torch.tensor([1, 4]))
    assert (order.action, order.config, order.round, order.late, window) == (
        "train",
        {"a-setting": 3},
        0,
        "cancel",
        All(),
    )
    assert torch.equal(order.payload["params"], state.params)


def test_defaults_of_the_bases():
    strategy, client = FedAvg(), Sgd(epochs=1)
    state = strategy.init(small_problem())
    assert (strategy.aggregates, strategy.unresumable) == (True, None)
    assert strategy.seeded(state, Streams(0)) is state
    assert (client.values_only, client.operations([(7,)]), client.numbers(7, 3), client.views) == (False, 0, 42, 1)
    assert Values().accepts == frozenset()
