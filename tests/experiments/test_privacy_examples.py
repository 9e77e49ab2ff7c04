"""Privacy of single examples, in short: how claims are judged, and what a private step is in plain PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.benchmarks.peers.private import PrivateLoop
from experiments.benchmarks.peers.works import digits
from experiments.privacy import examples
from experiments.privacy.examples import Measured


def told(**accuracies: float) -> examples.Results:
    """0.96 without privacy, 0.92 at z = 4, which spends 2.5, and less with more noise, unless they are named."""
    usual = {"no privacy": 0.96, "z = 2": 0.94, "z = 4": 0.92, "z = 8": 0.9, "z = 16": 0.8, "z = 4, 100 clients": 0.7}
    names = {"four": "z = 4", "eight": "z = 8", "apart": "z = 4, 100 clients"}
    found = {way: usual.get(way, 0.9) for way in examples.WAYS} | {names[one]: is_ for one, is_ in accuracies.items()}
    return {way: Measured("1.0", np.array([at, at, at]), np.inf if "no" in way else 2.5) for way, at in found.items()}


def test_claims_are_about_noise_epsilon_and_clients(tmp_path: Path) -> None:
    assert examples.falls(told())[1]
    assert not examples.falls(told(eight=0.95))[1]
    assert examples.useful(told())[1]
    assert not examples.useful(told(four=0.9))[1]
    assert examples.many(told())[1]
    assert not examples.many(told(apart=0.93))[1]
    assert examples.others(told())[1] is None
    assert len(examples.table(told()).rows) == len(examples.WAYS)
    examples.draw(told(), tmp_path / "examples.png")
    assert (tmp_path / "examples.png").stat().st_size > 5_000


@pytest.mark.parametrize("how", ["vmap", "opacus"])
def test_the_peers_take_clipped_steps(how):
    """Without noise no step of one client is longer than lr C times the examples drawn over those expected."""
    work = replace(digits(), clients=digits().clients[:1], epochs=1, batch_size=10**6)
    loop = PrivateLoop(work, how, 1e-3, 0.0)
    if loop.missing() is not None:
        pytest.skip("opacus is not installed")
    loop.start()
    before = [own.clone() for own in loop.state]
    loop.round()
    moved = torch.cat([(own - old).flatten() for own, old in zip(loop.state, before, strict=True)])
    assert 0.0 < float(moved.norm()) <= work.lr * 1e-3 * (1 + 1e-3)
