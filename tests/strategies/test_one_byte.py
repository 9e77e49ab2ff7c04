"""Just One Byte: exact replicas, the step, who knows what, and every byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from replicas import D, down, hold_contract, hold_equal, play, replicas, simulation

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.running.simulation import Simulation
from fedsim.testing.problems import DEVICE, mlp
from fedsim.zeroth_order.directions import Keys, part

SLEEPY = {"compute": {"kind": "fixed"}, "failure": {"mean_seconds": 2.0, "repair_seconds": 3.0}}


def one_byte(strategy: dict[str, Any] | None = None, client: dict[str, Any] | None = None, **other: Any) -> Simulation:
    return simulation("one_byte", {"lr": 0.02, **(strategy or {})}, {"mu": 0.01, **(client or {})}, **other)


@pytest.mark.parametrize(
    ("strategy", "other"),
    [
        ({"samples": 2}, {}),
        ({"join": "replay", "agg": "sqrt", "codec": "sign"}, {}),
        ({"history": 2, "codec": "fp32", "directions": "rademacher"}, {}),
        ({"directions": "segmented"}, {"devices": SLEEPY}),
    ],
)
def test_replicas_have_the_bits_of_the_servers_model_for_200_rounds(
    strategy: dict[str, Any], other: dict[str, Any]
) -> None:
    """Two of six clients a round: most replicas are old, some by more rounds than the history holds."""
    chosen = {"kind": "uniform", "count": 2}
    simulated = one_byte(strategy, {"batch_size": 2}, rounds=201, selection=chosen, **other)
    ages = hold_equal(simulated, 200)
    assert max(ages) > 5
    if "failure" in other.get("devices", {}):
        assert simulated.parts.engine.ledger.crashed > 10


def test_the_step_is_the_sum_over_machines_and_samples() -> None:
    """x - lr a_S sum deq(c) z with S = 5 machines of 2 samples; without machine 2, of 4: only S and the sum change."""
    for agg, power in (("mean", 1.0), ("sqrt", 0.5)):
        simulated = one_byte({"samples": 2, "agg": agg}, dtype=torch.float64)
        before, strategy = simulated.state, simulated.parts.strategy
        _, replies = play(simulated, 0, 1, 2, 4, 5)
        streams, codec = Streams(int(before.memory["seed"])), strategy.codec  # type: ignore[attr-defined]
        terms = {}
        for row, client in enumerate(replies.clients.tolist()):
            keys = Keys("one-byte", owner=2 * client + torch.arange(2), turn=0)
            z = part("gaussian", streams, keys, 0, D, dtype=torch.float64, device=torch.device("cpu"))
            terms[client] = codec.decode(replies.payload["codes"][row].cpu(), torch.float64) @ z
        for missing in (None, 2):
            machines = [client for client in terms if client != missing]
            kept = torch.tensor([client != missing for client in terms])
            after, _, _ = strategy.tell(before, replies.where(kept))
            expected = sum(terms[client] for client in machines) / (2 * len(machines)) ** power
            step = (before.params - after.params).cpu()
            assert torch.allclose(step, 0.02 * expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("agg", ["mean", "sqrt"])
def test_many_machines_with_a_sample_are_one_machine_with_many(agg: str) -> None:
    """Four machines with the same examples and one sample each draw what one machine draws for its four: equal bits."""
    generator = np.random.Generator(np.random.PCG64(3))
    x, y = generator.normal(size=(5, 6)), np.array([0, 1, 2, 1, 0])

    def final(machines: int, samples: int) -> torch.Tensor:
        lists = [np.arange(5 * machine, 5 * machine + 5) for machine in range(machines)]
        many = (np.tile(x, (machines, 1)), np.tile(y, machines))
        problem = fedsim.supervised(*many, model=mlp(), clients=lists, test=(x, y), device=DEVICE)
        options = {"samples": samples, "agg": agg, "lr": 0.1}
        simulated = simulation(
            "one_byte",
            options,
            {"mu": 0.01},
            rounds=20,
            problem=problem,
            selection={"kind": "uniform", "fraction": 1.0},
        )
        for _ in simulated:
            pass
        return simulated.state.params

    many = final(4, 1)
    assert torch.equal(many, final(1, 4))
    assert not torch.equal(many, final(4, 2))


def test_to_join_by_download_is_to_join_by_replay() -> None:
    """Client 5 joins in round 6: the same bits from 4 d bytes as from the whole log."""
    runs = [one_byte({"join": join}) for join in ("model", "replay")]
    for simulated in runs:
        for _ in range(6):
            play(simulated, 0, 1, 3)
    (sent, _), (logged, _) = (play(simulated, 0, 5) for simulated in runs)
    first, second = (replicas(simulated) for simulated in runs)
    assert torch.equal(first[5][1], second[5][1])
    assert torch.equal(runs[0].state.params, runs[1].state.params)
    # The model, the seed and three members; or the seed, six rounds of three codes, and their members once.
    assert down(sent)[1] == 4 * D + 8 + 4 * 3
    assert down(logged)[1] == 8 + 6 * 3 + 4 * 3


def test_bytes_are_those_of_the_codes_and_lists_that_a_machine_lacks() -> None:
    """G = 3. Own codes are not sent back; a list of members is sent where it changes."""
    simulated = one_byte({"samples": 3})
    sent = [down(play(simulated, *clients)[0]) for clients in ((0, 1), (0, 1), (2,), (0,), (0, 2))]
    fresh = 4 * D + 8
    assert sent[0] == [fresh, fresh]
    assert sent[1] == [3 + 8, 3 + 8]  # the other's codes, and that 0 and 1 took part
    assert sent[2] == [fresh + 8]  # the model, and who took part in the last round
    assert sent[3] == [3 + (4 + 3)]  # client 1's codes of round 1; of round 2 the list (2) and its codes
    assert sent[4] == [4, 4 + (4 + 3)]  # 0 learns that it was alone; 2 that it was, then 0's list and codes
    ledger = simulated.parts.engine.ledger
    assert ledger.bytes_down == sum(map(sum, sent))
    assert ledger.bytes_up == 3 * (2 + 2 + 1 + 1 + 2)
    assert ledger.queries == 2 * ledger.bytes_up
    # Both 0 and 2 took part in the last round, and nobody waits for 1 but from round 1 on.
    assert simulated.state.memory["rounds"].unique().tolist() == [1, 2, 3, 4]


def test_the_first_order_is_what_its_tensors_take() -> None:
    simulated = one_byte()
    orders, _ = play(simulated, 0, 1)
    assert down(orders) == [sum(part.numel() * part.element_size() for part in orders.payload.values())] * 2


@pytest.mark.parametrize(("codec", "samples", "up"), [("byte", 5, 5), ("sign", 4, 1), ("sign", 5, 2), ("fp32", 5, 20)])
def test_codecs_take_their_bytes_both_ways(codec: str, samples: int, up: int) -> None:
    simulated = one_byte({"codec": codec, "samples": samples})
    play(simulated, 0, 1)
    again, _ = play(simulated, 0, 1)
    assert simulated.parts.engine.ledger.bytes_up == 4 * up
    assert down(again) == [up + 8] * 2


def test_signs_come_back_from_two_bits() -> None:
    """Both values of a machine's step have the magnitude 0.3 / S."""
    simulated = one_byte({"codec": {"kind": "sign", "magnitude": 0.3}, "samples": 6})
    play(simulated, 0, 3)
    codes = simulated.state.memory["codes"]
    assert codes.shape == (2, 6)
    assert set(codes.flatten().tolist()) == {-1, 1}


def test_the_byte_loses_little_against_single_precision() -> None:
    losses = {}
    for codec in ("byte", "fp32"):
        options = {"codec": codec, "samples": 4, "lr": 0.1}
        simulated = one_byte(options, rounds=60, selection={"kind": "uniform", "fraction": 1.0})
        *_, last = (simulated.step() for _ in range(60))
        losses[codec] = last["train_loss"]
    assert losses["fp32"] < 0.8
    assert losses["byte"] == pytest.approx(losses["fp32"], rel=0.05)


def test_saturated_codes_are_counted() -> None:
    """At a scale of 2^20 the grid begins at 398: every slope that is not 0 saturates."""
    assert one_byte({"codec": {"kind": "byte", "scale": 2.0**20}, "samples": 3}).step()["saturated"] == 12
    assert one_byte({"samples": 3}).step()["saturated"] == 0


def test_rounding_at_random_is_another_run() -> None:
    runs = [one_byte({"samples": 8}, {"stochastic": stochastic}) for stochastic in (False, True)]
    codes = [play(simulated, 0, 1, 2, 3, 4, 5)[1].payload["codes"] for simulated in runs]
    # Neighbouring codes of the same slopes.
    difference = (codes[0].int() - codes[1].int()).abs()
    assert difference.max() == 1


def test_a_value_that_is_not_a_number_moves_nothing() -> None:
    """Client 0 answers nothing but NaN: it is left out of the round, which client 1 takes alone."""

    def functions(clients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        values = x.square().sum(dim=2)
        return torch.where((clients == 0).unsqueeze(1), torch.nan, values)

    problem = fedsim.black_box(functions, dimension=4, clients=2, bounds=None, start=1.0, device=DEVICE)
    simulated = simulation("one_byte", {"lr": 0.1}, problem=problem, selection={"kind": "uniform", "fraction": 1.0})
    before = simulated.state.params
    _, replies = play(simulated, 0, 1)
    assert (replies.clients.tolist(), replies.failed.tolist()) == ([1], [0])
    assert not torch.equal(simulated.state.params, before)
    # The only loss that is a number is client 1's, near |x|^2.
    near = float(simulated.state.params.square().sum())
    assert simulated.step()["train_loss"] == pytest.approx(near, rel=0.01)


def test_chunks_restored_runs_and_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_contract(lambda **other: one_byte({"samples": 3}, {"batch_size": 4}, rounds=4, **other), monkeypatch)


def test_nobody_leaves_the_model_and_the_log() -> None:
    simulated = one_byte()
    play(simulated, 0, 1)
    before = simulated.state
    _, replies = play(simulated, 0, 1)
    state, _, done = simulated.parts.strategy.tell(before, replies.where(torch.zeros(2, dtype=torch.bool)))
    assert done
    assert state.round == 2
    assert torch.equal(state.params, before.params)
    assert torch.equal(state.memory["rounds"], before.memory["rounds"])
    assert state.memory["members"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"join": "replay", "history": 3}, "history"),
        ({"samples": 2**31}, "samples"),
        ({"codec": {"kind": "byte", "scale": 3.0}}, "scale"),
        ({"codec": "nibble"}, "nibble"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        one_byte(options)
