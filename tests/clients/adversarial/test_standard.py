"""Training on attacked examples: what is attacked, and that without an attack nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arming import CLIMB, armed, assert_climbs, run
from torch.nn import functional

from fedsim.client.defence import Defence
from fedsim.core.errors import InputError

PGD: dict[str, Any] = {"kind": "pgd", "epsilon": 0.3, "steps": 2, "domain": "none"}
DEFENCES = ["standard", "trades", "mart", "calfat", "dbfat"]


@pytest.fixture
def unchecked(monkeypatch):
    """Runs that defend nobody, which are refused otherwise."""
    monkeypatch.setattr("fedsim.running.build.check", lambda experiment, problem: None)


@pytest.mark.parametrize(
    "off",
    [
        {"kind": "trades", "attack": PGD | {"epsilon": 0.0}},
        {"kind": "standard", "attack": PGD | {"steps": 0}},
        {"kind": "standard", "attack": PGD, "mix": 0.0},
        {"kind": "dbfat", "attack": PGD, "warm_up": 3},
    ],
    ids=str,
)
def test_a_run_that_defends_nobody_is_refused(off):
    with pytest.raises(InputError, match=rf"^client\.adversarial = {off['kind']}: attacks nothing in 3 round"):
        run(off)
    if "warm_up" in off:
        assert torch.isfinite(run(off, rounds=4)).all()


@pytest.mark.parametrize("executor", ["stacked", "loop"])
@pytest.mark.parametrize(
    "off",
    [
        *({"kind": kind, "attack": PGD | {"epsilon": 0.0}} for kind in DEFENCES),
        {"kind": "standard", "attack": PGD | {"steps": 0}},
        {"kind": "standard", "attack": PGD | {"steps": 0}, "mix": 0.5},
        {"kind": "standard", "attack": PGD, "mix": 0.0},
        {"kind": "dbfat", "attack": PGD, "warm_up": 3},
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_without_an_attack_a_run_is_fedavg_to_the_last_bit(off, executor):
    engine = {"executor": executor}
    found, plain = run(off, engine=engine), run(None, engine=engine)
    if executor == "loop" and off["kind"] in ("trades", "mart"):
        # Two views of each example: the module multiplies twice as many rows at once, and on AMD processors the last
        # bits of a row depend on how many there are. Parameters are below 1, rounded to 6e-8 in each of a few steps.
        assert torch.allclose(found, plain, rtol=0, atol=1e-6)
    else:
        assert torch.equal(found, plain)


@pytest.mark.parametrize("kind", DEFENCES)
@pytest.mark.usefixtures("unchecked")
def test_rounds_of_warm_up_are_fedavg_and_those_after_them_are_not(kind):
    off = {"kind": kind, "attack": PGD, "warm_up": 2}
    assert torch.equal(run(off, rounds=2), run(None, rounds=2))
    assert not torch.equal(run(off, rounds=3), run(None, rounds=3))


@pytest.mark.parametrize("kind", DEFENCES)
def test_padding_and_other_clients_change_nothing(kind):
    """Clients of 1 to 12 examples side by side, padded, and one by one without padding."""
    adversarial = {"kind": kind, "attack": PGD}
    stacked, loop = (run(adversarial, torch.float64, engine={"executor": name}) for name in ("stacked", "loop"))
    assert torch.allclose(stacked, loop, rtol=0, atol=1e-12)


def test_the_attack_climbs_the_loss_of_the_local_model():
    found = armed({"kind": "standard", "attack": CLIMB})

    def value(module, row, inputs, x, y):
        return functional.cross_entropy(module(inputs), y, reduction="sum")

    assert found.after.loss is None
    assert_climbs(found, found.after.x, found.start(), value)


@pytest.mark.parametrize("executor", ["stacked", "loop"])
@pytest.mark.parametrize("mix", [0.2, 0.5, 0.6, 1.0])
def test_of_each_client_a_share_of_its_own_examples_is_attacked(mix, executor):
    """Of batches of 4, 4, 4, 4, 3 and 1 examples, half to even: at 0.2 1, 1, 0; at 0.5 2, 2, 0; at 0.6 2, 2, 1."""
    wide = 6 if executor == "stacked" else 1
    found = armed({"kind": "standard", "attack": PGD, "mix": mix}, count=wide, executor=executor)
    moved = (found.after.x != found.before.x).any(dim=2) & (found.before.weight > 0)
    counts = moved.sum(dim=1).tolist()
    expected = {0.2: [1, 1, 1, 1, 1, 0], 0.5: [2, 2, 2, 2, 2, 0], 0.6: [2, 2, 2, 2, 2, 1], 1.0: [4, 4, 4, 4, 3, 1]}
    assert found.counts() == [4, 4, 4, 4, 3, 1][:wide]
    assert counts == expected[mix][:wide]
    assert torch.equal(found.after.y, found.before.y)
    assert torch.equal(found.after.weight, found.before.weight)


@pytest.mark.parametrize("mix", [0.3, 0.7])
def test_a_share_is_the_same_in_the_stack_and_in_the_loop(mix):
    adversarial = {"kind": "standard", "attack": PGD, "mix": mix}
    stacked, loop = (run(adversarial, torch.float64, engine={"executor": name}) for name in ("stacked", "loop"))
    assert torch.allclose(stacked, loop, rtol=0, atol=1e-12)


def test_every_example_has_its_turn():
    """Independent steps on all of three examples have them in the same order; 40 of them leave nobody out.

    One of three is attacked (round(0.4 x 3) = 1): that one of them never is has probability 3 (2/3)^40 < 1e-6.
    """
    found = armed({"kind": "standard", "attack": PGD, "mix": 0.4})
    arm, seen, first = found.defence.armed(found.cohort, 1.0), torch.zeros(3, dtype=torch.int64), None
    for batch in found.cohort.batches(steps=40, batch_size=4):
        own = batch.y[4, :3]
        first = own if first is None else first
        assert torch.equal(own, first)
        moved = (arm(found.rows, batch).x != batch.x).any(dim=2)[4, :3]
        assert int(moved.sum()) == 1
        seen += moved.cpu()
    assert int(seen.min()) > 0


def test_effort_is_what_attacks_take():
    """Two gradients a step beside its own, of half of the examples one; a second view one more, forward passes 1/3.

    DBFAT asks for predictions at three points, and for the global model's at one: 2 + 4/3.
    """

    def effort(kind: str, **options: Any) -> float:
        made: Defence = armed({"kind": kind, "attack": PGD, "warm_up": 1, **options}).defence
        assert made.effort(0) == 0.0
        return made.effort(1)

    assert effort("standard") == 2.0
    assert effort("standard", mix=0.5) == 1.0
    assert effort("standard", mix=0.0) == 0.0
    assert effort("trades") == pytest.approx(3 + 1 / 3)
    assert effort("mart") == 3.0
    assert effort("calfat") == pytest.approx(2 + 1 / 3)
    assert effort("calfat", attack_loss="own") == 2.0
    assert effort("dbfat") == pytest.approx(2 + 4 / 3)
    assert effort("dbfat", weights="equal") == pytest.approx(2 + 1 / 3)


@pytest.mark.parametrize("kind", ["trades", "calfat"])
def test_an_attack_that_would_stay_where_it_begins_is_refused(kind):
    with pytest.raises(InputError, match=r"adversarial\.attack\.random_start = False"):
        run({"kind": kind, "attack": {"kind": "fgsm", "epsilon": 0.1, "domain": "none"}})
    attack = {"kind": "fgsm", "epsilon": 0.1, "domain": "none"}
    if kind == "calfat":
        run({"kind": kind, "attack": attack, "attack_loss": "own"}, rounds=1)
