"""Every rule goes with every client that trains and along estimated gradients, or is refused by a property."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedsim
from fedsim.client import Optimizer
from fedsim.core import plugins
from fedsim.core.errors import InputError
from fedsim.testing.problems import small_experiment, small_problem
from fedsim.zeroth_order.search import GIVEN

RULES = sorted(plugins.names("optimizers"))
EPOCHS = {"epochs": 2, "batch_size": 4}
PGD = {"kind": "pgd", "epsilon": 0.3, "steps": 2, "domain": "none"}
TRAINING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fedprox": ({"strategy": {"kind": "fedprox", "proximal_mu": 0.1}}, {"kind": "sgd", **EPOCHS}),
    "feddyn": ({"strategy": {"kind": "feddyn"}}, {"kind": "feddyn", **EPOCHS}),
    "defence": ({}, {"kind": "sgd", **EPOCHS, "adversarial": {"kind": "standard", "attack": PGD}}),
    "curriculum": ({}, {"kind": "sgd", **EPOCHS, "curriculum": {}}),
    "asynchronous": ({"strategy": {"kind": "fedbuff", "size": 2}}, {"kind": "sgd", "steps": 3, "batch_size": 4}),
    "decay and clipping": ({}, {"kind": "sgd", **EPOCHS, "weight_decay": 0.01, "clip_norm": 1.0}),
}
"""Of each combination the tables beside the client's, and the client's."""
SEARCHING = ("fedzo", "scaffold_zo")


def made(name: str) -> Optimizer:
    """A rule as its name alone stands for it."""
    rule: Optimizer = plugins.make("optimizers", name, "optimizer")
    return rule


def end(**tables: Any) -> torch.Tensor:
    """Where the server is after two rounds."""
    experiment = small_experiment(rounds=2, engine={"executor": "stacked"}, **tables)
    result = fedsim.run(experiment, problem=small_problem(), save=False)
    assert result.status == "finished", result.reason
    return result.params


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("combination", TRAINING)
def test_every_rule_goes_with_what_trains(name: str, combination: str) -> None:
    """But gradients over all examples are not those of batches that are chosen, and what is solved for has no bound."""
    tables, client = TRAINING[combination]
    client, rule = {**client, "optimizer": name}, made(name)
    if ("whole" in rule.needs and client.keys() & {"adversarial", "curriculum"}) or (
        "clip_norm" in client and not rule.bounded
    ):
        with pytest.raises(InputError, match=r"client\.(optimizer|clip_norm) = "):
            small_experiment(**tables, client=client)
        return
    found = end(**tables, client=client)
    assert not torch.equal(found, torch.as_tensor(small_problem().initial(), dtype=found.dtype))


@pytest.mark.parametrize("name", RULES)
def test_what_a_method_needs_of_its_steps_decides(name: str) -> None:
    """SCAFFOLD's control variates are of plain steps; FedNova divides by the weights of the gradients."""
    rule = made(name)
    for strategy, client, fits in (
        ("scaffold", "scaffold", rule.plain),
        ("fednova", "sgd", rule.weights(torch.ones(1), 0.0) is not None),
    ):
        tables = {"strategy": {"kind": strategy}, "client": {"kind": client, **EPOCHS, "optimizer": name}}
        if fits:
            end(**tables)
        else:
            with pytest.raises(InputError, match=r"client\.optimizer = "):
                small_experiment(**tables)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("client", SEARCHING)
def test_what_gradients_suffice_for_goes_with_estimated_ones(name: str, client: str) -> None:
    lacking = made(name).needs - GIVEN
    tables = {"strategy": {"kind": client}, "client": {"kind": client, "steps": 3, "optimizer": name}}
    if lacking:
        with pytest.raises(InputError, match=r"client\.optimizer = .*: asks for .*, which a search .* does not give"):
            small_experiment(**tables)
    else:
        end(**tables)
