"""Methods of personal models, of fairness and of distillation at the setting at which they are another method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch

from fedsim.problems.own_data import supervised
from fedsim.problems.supervised import Supervised
from fedsim.running.build import build_simulation
from fedsim.running.personal import own_models
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import blobs, mlp, small_experiment

TRAINING: Mapping[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.2}
ROUNDS = 4
Whose = Literal["everybodys", "own"]


@dataclass(frozen=True)
class Case:
    """A method that is to be another one. client, strategy: its tables beside `TRAINING`; like: those of the other.

    whose: which models are to be the same. exact: to the bit; else to 1e-12. shared: as of `fedsim.supervised`, where
    it is given.
    """

    name: str
    client: Mapping[str, Any] = field(default_factory=dict)
    strategy: Mapping[str, Any] = field(default_factory=dict)
    like: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    whose: tuple[Whose, Whose] = ("everybodys", "everybodys")
    exact: bool = True
    shared: str | None = None


ALONE: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"kind": "local"}, {"kind": "local"})
UNIFORM: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {"weighting": "uniform"})
PROXIMAL: Mapping[str, Any] = {"kind": "fedprox", "proximal_mu": 0.7}
OWN: tuple[Whose, Whose] = ("own", "own")
CASES = (
    Case("shared, all", shared="all"),
    Case("Ditto, the model for all", {"kind": "ditto", "lam": 0.3}),
    Case("Ditto, lam 0", {"kind": "ditto", "lam": 0.0}, like=ALONE, whose=OWN),
    Case("APFL, the model for all", {"kind": "apfl", "alpha": 0.4}),
    Case("APFL, alpha 0", {"kind": "apfl", "alpha": 0.0}, whose=("own", "everybodys")),
    Case("APFL, alpha 1", {"kind": "apfl", "alpha": 1.0}, like=ALONE, whose=OWN, exact=False),
    Case("Per-FedAvg, first order, a 0", {"kind": "perfedavg", "inner_lr": 0.0}, exact=False),
    Case("Per-FedAvg, exact, a 0", {"kind": "perfedavg", "inner_lr": 0.0, "form": "hf"}, exact=False),
    Case("FedALA, eta 0", {"kind": "fedala", "eta": 0.0}),
    Case("FedALA, eta 0, FedProx", {"kind": "fedala", "eta": 0.0}, PROXIMAL, ({}, PROXIMAL)),
    Case("MOON, mu 0", {"kind": "moon", "mu": 0.0}),
    Case("MOON, mu 0, FedProx", {"kind": "moon", "mu": 0.0}, PROXIMAL, ({}, PROXIMAL)),
    Case("FedSAM, rho 0", {"optimizer": {"kind": "sam", "rho": 0.0}}),
    Case("FedProto, lam 0", {"kind": "fedproto", "lam": 0.0}, {"kind": "fedproto"}, ALONE, OWN),
    Case("IFCA, one cluster", {"kind": "ifca"}, {"kind": "ifca", "clusters": 1}, UNIFORM),
    Case("q-FedAvg, q 0", {}, {"kind": "qfedavg", "q": 0.0, "client_lr": 0.2}, UNIFORM, exact=False),
    Case("TERM, t 0", {}, {"kind": "term", "t": 0.0}),
    Case("AFL, rate 0", {}, {"kind": "afl", "lambda_lr": 0.0}, UNIFORM, exact=False),
    Case("FedDF, no step", {}, {"kind": "feddf", "steps": 0}),
)


def problem(shared: str | None = None) -> Supervised:
    tests = [*np.arange(20).reshape(5, 4), []]
    given: dict[str, Any] = {} if shared is None else {"shared": shared}
    return supervised(**blobs(), test_clients=tests, model=mlp(), dtype=torch.float64, device="cpu", **given)


def ran(client: Mapping[str, Any], strategy: Mapping[str, Any], shared: str | None) -> Simulation:
    tables = {"client": {"kind": "sgd", **TRAINING} | client, "strategy": {"kind": "fedavg"} | strategy}
    made = build_simulation(small_experiment(ROUNDS, **tables), problem(shared))
    for _ in range(ROUNDS):
        made.step()
    return made


def models(made: Simulation, whose: Whose) -> torch.Tensor:
    """Each client's, [6, d]."""
    held = made.parts.problem
    assert isinstance(held, Supervised)
    if whose == "everybodys":
        return made.params.expand(6, -1)
    return own_models(made.parts.engine, held, made.parts.strategy, made.state, None).models(torch.arange(6)).flat()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_method_at_its_edge_is_another(case):
    found = models(ran(case.client, case.strategy, case.shared), case.whose[0])
    other = models(ran(*case.like, None), case.whose[1])
    start = problem().initial()
    assert not torch.equal(other[0], start)
    if case.exact:
        assert torch.equal(found, other)
    else:
        torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-12)
