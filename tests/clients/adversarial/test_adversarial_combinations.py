"""Adversarial training under other strategies, aggregators and windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arming import run
from torch import nn

from fedsim.running.build import build_simulation
from fedsim.testing.problems import mlp, small_problem
from fedsim.testing.problems import small_experiment as small

ATTACK = {"kind": "pgd", "epsilon": 0.2, "steps": 2, "domain": "none"}
SPREAD = {"compute": {"kind": "fixed", "spread": 80.0}}
ALL = {"kind": "uniform", "fraction": 1.0}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "fedprox": {"strategy": {"kind": "fedprox", "proximal_mu": 0.5}},
    "scaffold": {"strategy": "scaffold", "client": {"kind": "scaffold"}},
    "feddyn": {"strategy": {"kind": "feddyn", "alpha": 0.1}, "client": {"kind": "feddyn"}},
    "fednova": {"strategy": "fednova"},
    "median": {"aggregation": "median"},
    "fedfix": {"strategy": "fedfix", "devices": SPREAD, "selection": ALL},
    "fedbuff": {"strategy": {"kind": "fedbuff", "size": 2}, "devices": SPREAD, "selection": ALL},
    "sfat": {"strategy": {"kind": "sfat"}},
    "momentum": {"client": {"optimizer": {"kind": "sgd", "momentum": 0.9}, "clip_norm": 1.0}},
}


@pytest.mark.parametrize("row", COMBINATIONS)
@pytest.mark.parametrize("kind", ["standard", "mart", "dbfat"])
def test_any_defence_goes_with_any_strategy(kind, row):
    """It runs, differs from training without an attack, and the loop equals the stack."""

    def final(executor: str, adversarial: dict[str, Any] | None) -> torch.Tensor:
        tables = {name: dict(table) if name == "client" else table for name, table in COMBINATIONS[row].items()}
        return run(adversarial, torch.float64, engine={"executor": executor}, **tables)

    defence = {"kind": kind, "attack": ATTACK}
    stacked = final("stacked", defence)
    assert torch.isfinite(stacked).all()
    assert torch.allclose(stacked, final("loop", defence), rtol=0, atol=1e-10 * float(stacked.abs().max()))
    assert not torch.allclose(stacked, final("stacked", None), rtol=1e-4)


@pytest.mark.parametrize("kind", ["standard", "trades", "mart", "calfat", "dbfat"])
def test_convolutions_are_trained_alike_in_the_stack_and_in_the_loop(kind):
    """Through networks that are not chains of linear layers."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), mlp(inputs=3 * 2 * 4, activation=nn.Tanh))
    params = []
    for executor in ("stacked", "loop"):
        client = {"kind": "sgd", "epochs": 1, "batch_size": 4, "lr": 0.1}
        experiment = small(
            2, client=client | {"adversarial": {"kind": kind, "attack": ATTACK}}, engine={"executor": executor}
        )
        simulated = build_simulation(experiment, small_problem(model=model, shape=(1, 4, 6)))
        for _ in simulated:
            pass
        params.append(simulated.state.params)
    assert torch.allclose(*params, rtol=0, atol=1e-10)
