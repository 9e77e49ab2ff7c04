"""Rounds of secure aggregation: the sum, the bytes, the time, who leaves, and what is refused."""

from dataclasses import replace

import codes
import numpy as np
import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.core.streams import Streams
from fedsim.exchange.secure import Masks
from fedsim.exchange.windows import All
from fedsim.running.build import build_simulation
from fedsim.running.runner import execute
from fedsim.testing.problems import small_experiment as small
from fedsim.testing.problems import small_problem

SIZES = (7, 3, 12, 1, 5, 9, 4, 6, 8, 2)
ALL = {"kind": "uniform", "fraction": 1.0}
SCAFFOLD = {"kind": "scaffold", "epochs": 1}


def secure(**options):
    return {"kind": "secure", "clip": 0.5, **options}


def simulated(aggregation=None, *, dtype=torch.float64, **tables):
    given = {"selection": ALL, "rounds": 3, "aggregation": aggregation or secure(), **tables}
    return build_simulation(small(**given), small_problem(dtype, sizes=SIZES))


def changes(simulation):
    """What the clients of the next round would send, [m, d]: as in a run that tells them."""
    engine = simulation.parts.engine
    order, _ = simulation.parts.strategy.ask(simulation.state, torch.arange(len(SIZES)))
    engine.submit(order)
    return engine.collect(All(), 0)


def heard(simulation, monkeypatch):
    """All that the strategy is told, as a run goes on."""
    strategy, said = simulation.parts.strategy, []
    tell = type(strategy).tell

    def told(self, state, replies):
        said.append(replies)
        return tell(self, state, replies)

    monkeypatch.setattr(type(strategy), "tell", told)
    return said


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_the_strategy_is_told_one_row_and_it_is_the_mean_of_quantised_changes(weighting, monkeypatch):
    strategy = {"kind": "fedavg", "weighting": weighting}
    single = changes(simulated("mean", strategy=strategy)).payload["delta"]
    simulation = simulated(secure(bits=9, clip=0.05), strategy=strategy)
    told = heard(simulation, monkeypatch)
    row = simulation.step()
    drawn = Streams(simulation.parts.streams.seed).uniform("secure/rounding", torch.arange(10), single.shape[1:])
    step, weights = 0.1 / 511, torch.tensor(SIZES if weighting == "examples" else [1] * 10)
    levels = torch.floor((single.clamp(-0.05, 0.05) + 0.05) / step + drawn).clamp(max=511)
    expected = (weights.unsqueeze(1) * levels).sum(dim=0) / weights.sum() * step - 0.05
    (replies,) = told
    assert replies.payload.keys() == {"delta"}
    assert torch.equal(replies.payload["delta"], expected.unsqueeze(0))
    assert (len(replies), replies.examples.tolist()) == (1, [1])
    assert all(values.shape == (1,) for values in replies.metrics.values())
    assert row["clipped_numbers"] == pytest.approx(float((single.abs() > 0.05).double().mean()))
    assert 0.0 < row["clipped_numbers"] < 1.0
    assert row["void"] == 0.0
    # Against what they would have been: a step at most, where nothing is cut.
    close = (single.abs() <= 0.05).all(dim=0)
    mean = (weights.unsqueeze(1) * single).sum(dim=0) / weights.sum()
    assert float((expected - mean)[close].abs().max()) <= step


def test_every_round_is_rounded_anew(monkeypatch):
    # The clients' changes are the same in each round of a server that does not move: 1e-30 of them is nothing.
    still, whole = {"kind": "fedavg", "server_lr": 1e-30}, {"kind": "sgd", "steps": 1, "batch_size": "full"}
    simulation = simulated(secure(bits=4), strategy=still, client=whole)
    told = heard(simulation, monkeypatch)
    simulation.step()
    simulation.step()
    first, second = (replies.payload["delta"] for replies in told)
    assert not torch.equal(first, second)
    assert float((first - second).abs().max()) <= 2 * 1.0 / 15


@pytest.mark.parametrize(
    "tables",
    [
        {"strategy": {"kind": "fedavg", "server_lr": 0.1, "server_optimizer": "adam"}},
        {"strategy": {"kind": "fedprox", "proximal_mu": 0.5}},
        {"problem": {"shared": "body"}},
        {"transforms": [{"kind": "clip", "max_norm": 0.1}]},
        {"engine": {"executor": "loop"}},
    ],
)
def test_it_is_what_it_is_without_but_for_rounding(tables):
    plain = simulated("mean", **tables)
    masked = simulated(secure(clip=2.0, bits=32), **tables)
    for _ in range(2):
        assert masked.step()["train_loss"] == pytest.approx(plain.step()["train_loss"], abs=1e-6)
        assert float((masked.params - plain.params).abs().max()) < 1e-5


@pytest.mark.parametrize("options", [{}, {"neighbours": 4, "threshold": 3}, {"bits": 24, "ring": 50}])
def test_who_is_whose_neighbour_and_how_wide_the_ring_is_changes_nothing_that_is_learnt(options):
    expected = simulated(secure(bits=24), selection={"kind": "uniform", "count": 8})
    found = simulated(secure(**{"bits": 24, **options}), selection={"kind": "uniform", "count": 8})
    for _ in range(2):
        expected.step()
        found.step()
        assert torch.equal(found.params, expected.params)


@pytest.mark.parametrize(
    "options",
    [
        {"clip": 0.01},
        {"bits": 8},
        {"ring": 30},
        {"neighbours": 4},
        {"threshold": 10},
        {"leave_before": 0.2},
        {"leave_after": 0.2},
    ],
)
def test_every_option_moves_something(options):
    (base, plain), (changed, row) = ((one, one.step()) for one in (simulated(), simulated(secure(**options))))
    if options == {"threshold": 10}:
        (plain, row) = (simulated(secure(leave_after=0.2, **given)).step() for given in ({"threshold": 6}, options))
        assert (plain["void"], row["void"]) == (0.0, 1.0)
    else:
        assert row["bytes_up"] != plain["bytes_up"] or not torch.equal(base.params, changed.params)


def test_bytes_by_hand():
    # Ten clients of whom all stay, weights by examples: 57 add up to 2^16 - 1 times 57 below 2^22.
    simulation = simulated()
    d = len(simulation.params)
    row = simulation.step()
    up = 2 * 32 + 9 * (2 * 17 + 28 + 4) + -(-(d + 1) * 22 // 8) + 10 * 17
    down = 8 * d + 9 * (2 * 32 + 4) + 9 * (2 * 17 + 28 + 4) + 2
    assert (row["bytes_up"], row["bytes_down"]) == (10 * up, 10 * down)
    # Uniform weights need not be sent, and 10 (2^16 - 1) is below 2^20.
    row = simulated(strategy={"kind": "fedavg", "weighting": "uniform"}).step()
    assert row["bytes_up"] == 10 * (up - -(-(d + 1) * 22 // 8) + -(-d * 20 // 8))


def test_every_stage_waits_for_the_slowest():
    link = {"bandwidth": {"up": 100.0, "down": 1000.0}, "compute": {"kind": "fixed", "seconds": 3.0}}
    simulation = simulated(secure(neighbours=4, threshold=4), devices=link)
    d = len(simulation.params)
    keys = 64 / 100 + 4 * 68 / 1000
    shares = 4 * 66 / 100 + 4 * 66 / 1000
    vector = 3.0 + 8 * d / 1000 + -(-(d + 1) * 22 // 8) / 100
    unmasking = 5 * 17 / 100 + 1 / 1000
    assert simulation.step()["time"] == pytest.approx(keys + shares + vector + unmasking, abs=1e-6)


def test_when_it_is_looked_at_changes_no_time():
    devices = {
        "bandwidth": {"up": 100.0, "down": 1000.0, "sigma": 0.5},
        "failure": {"mean_seconds": 60.0, "repair_seconds": 1.0},
        "compute": {"kind": "fixed", "seconds": 3.0, "spread": 4.0},
    }
    ends = [
        list(simulated(secure(threshold=6), devices=devices, evaluation=evaluation))
        for evaluation in ({"every": 1}, {"every_seconds": 0.9})
    ]
    assert ends[0][-1]["time"] == ends[1][-1]["time"]
    assert len(ends[1]) > len(ends[0])
    assert sum(row["bytes_up"] for row in ends[0]) == sum(row["bytes_up"] for row in ends[1])


def faults(**kinds):
    return {kind: {"rate": 1.0, "clients": clients} for kind, clients in kinds.items()}


@pytest.mark.parametrize(
    ("kinds", "left"),
    [
        ({"crash": [0, 1, 2]}, 7),
        ({"drop_before": [3], "non_finite": [4], "drop_after": [9]}, 7),
        ({"crash": [0, 1, 2, 3]}, 0),
    ],
)
def test_clients_that_fail_have_left_after_they_shared(kinds, left, monkeypatch):
    simulation = simulated(secure(threshold=7, clip=2.0, bits=32), faults=faults(**kinds))
    single = changes(simulated("mean"))
    told, before = heard(simulation, monkeypatch), simulation.params.clone()
    row = simulation.step()
    (replies,) = told
    assert torch.isfinite(simulation.params).all()
    gone = [client for clients in kinds.values() for client in clients]
    stay = torch.tensor([client for client in range(10) if client not in gone])
    if left:
        weights = torch.tensor(SIZES)[stay].double()
        mean = weights @ single.payload["delta"][stay] / weights.sum()
        assert torch.allclose(replies.payload["delta"][0], mean, rtol=0, atol=4.0 / (2**32 - 1))
        assert (row["void"], len(replies)) == (0.0, 1)
    else:
        assert (row["void"], len(replies)) == (1.0, 0)
        assert torch.equal(simulation.params, before)
        assert simulation.parts.engine.trace.skipped == 1
        # Nothing is unmasked: keys, shares and six vectors of 38 bits are all that went up.
        d = len(before)
        assert row["bytes_up"] == 10 * (64 + 9 * 66) + 6 * -(-(d + 1) * 38 // 8)


def test_who_leaves_before_sharing_is_not_sent_the_model_and_does_not_work():
    simulation = simulated(secure(leave_before=0.3, threshold=6))
    left = Streams(simulation.parts.streams.seed).uniform("secure/before", torch.arange(10), dtype=torch.float64) < 0.3
    gone = int(left.sum())
    assert 0 < gone < 5
    row, d = simulation.step(), len(simulation.params)
    assert (row["clients"], row["void"]) == (10 - gone, 0.0)
    stay = 10 - gone
    down = 10 * 9 * 68 + stay * ((stay - 1) * 66 + 8 * d + -(-(stay - 1) // 8))
    assert row["bytes_down"] == down


@pytest.mark.parametrize(("options", "clients"), [({"leave_before": 1.0}, 0), ({"leave_after": 1.0}, 10)])
def test_where_too_few_stay_nothing_is_learnt_and_the_run_is_given_up(options, clients):
    simulation = simulated(secure(**options))
    before = simulation.params.clone()
    row = simulation.step()
    assert (row["clients"], row["void"]) == (clients, 1.0)
    assert row["bytes_up"] > 0
    assert torch.equal(simulation.params, before)


def test_who_leaves_after_its_vector_counts():
    stays = simulated(secure())
    leaves = simulated(secure(leave_after=0.2, threshold=6))
    assert leaves.step()["void"] == stays.step()["void"] == 0.0
    assert torch.equal(leaves.params, stays.params)
    gone = Streams(0).uniform("secure/after", torch.arange(10), dtype=torch.float64) < 0.2
    assert int(gone.sum()) > 0


def test_a_run_goes_on_where_it_was_stopped():
    tables = {"aggregation": secure(leave_before=0.1, leave_after=0.1, neighbours=4, threshold=3), "rounds": 4}
    whole = simulated(tables["aggregation"], rounds=4)
    rows = list(whole)
    half = simulated(tables["aggregation"], rounds=4)
    half.step()
    half.step()
    again = simulated(tables["aggregation"], rounds=4)
    again.restore(half.snapshot())
    for row, other in zip(rows[2:], again, strict=True):
        assert {**row, "wall": 0.0} == {**other, "wall": 0.0}
    assert torch.equal(again.params, whole.params)


def test_cohorts_in_parts_are_rounded_alike():
    whole, parts = simulated(dtype=torch.float32), simulated(dtype=torch.float32, engine={"memory_mib": 1})
    parts.parts.engine.executor.memory = 1
    assert parts.parts.engine.executor.chunk == 1
    whole.step()
    parts.step()
    assert torch.allclose(whole.params, parts.params, rtol=0, atol=2.0 / 65535)


def test_masked_rows_are_all_that_there_is_to_see(monkeypatch):
    seen = []
    unmasked = Masks.unmasked
    monkeypatch.setattr(Masks, "unmasked", lambda self, rows: seen.append(rows.copy()) or unmasked(self, rows))
    simulation = simulated(secure(ring=32), rounds=2)
    simulation.step()
    (rows,) = seen
    assert rows.shape == (10, len(simulation.params) + 1)
    # The upper four bits of what is sent: chi-square of 15 degrees of freedom is above 37.7 once in 1000.
    counts = np.bincount((rows >> 28).ravel(), minlength=16)
    assert ((counts - rows.size / 16) ** 2 / (rows.size / 16)).sum() < 37.7


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"strategy": "fednova"}, "aggregation.kind = secure: fednova is sent nu beside the change"),
        (
            {"strategy": "scaffold", "client": {"kind": "scaffold", "epochs": 1}},
            "aggregation.kind = secure: scaffold is sent control-delta",
        ),
        ({"strategy": {"kind": "fedbuff", "size": 3}}, "aggregation.kind = secure: fedbuff looks at single replies"),
        ({"strategy": {"kind": "fedavg", "first": 3}}, "aggregation.kind = secure: .*leave strategy.first out"),
        ({"selection": {"kind": "oort", "count": 3}}, "selection.kind = oort: it is told clients' losses"),
        ({"selection": {"kind": "uniform", "count": 1}}, "aggregation.kind = secure: the sum of a single client"),
        ({"aggregation": secure(threshold=11)}, "aggregation.threshold = 11: .*take 10 at most"),
        ({"aggregation": secure(ring=21)}, "aggregation.ring = 21: weights add up to 57"),
        ({"aggregation": secure(neighbours=3)}, "aggregation.neighbours = 3: "),
    ],
)
def test_what_cannot_be_done_with_a_sum_is_refused(tables, line):
    with pytest.raises(InputError, match=f"^{line}"):
        simulated(**{**tables, "aggregation": tables.get("aggregation")})


def test_transforms_with_an_encoding_of_their_own_are_refused_and_noise_is_told(capsys):
    experiment = small(selection=ALL, aggregation=secure(), transforms=[codes.EightBits()])
    with pytest.raises(InputError, match=r"^transforms.0.kind = .*it has an encoding of its own"):
        build_simulation(experiment, small_problem(torch.float32))
    simulated(transforms=[{"kind": "noise", "std": 0.01}])
    assert "transforms.0.kind = noise: it is rounded afterwards, and only about normal" in capsys.readouterr().err


def test_an_engine_that_is_elsewhere_is_refused():
    experiment = small(selection=ALL, aggregation=secure())
    with pytest.raises(InputError, match=r"^aggregation.kind = secure: Flower's nodes do not mask"):
        build_simulation(experiment, small_problem(torch.float32), lambda problem, aggregator: Elsewhere())


def test_client_apps_of_flower_do_not_mask():
    flower = pytest.importorskip("fedsim.flower.as_strategy")
    with pytest.raises(InputError, match=r"^aggregator = secure: client apps do not mask .* SecAgg\+ workflow"):
        flower.as_flower_strategy("fedavg", aggregator=secure())


class Elsewhere:
    """An engine that is not in this process."""


def test_a_run_tells_how_often_it_was_void():
    result = execute(
        replace(small(selection=ALL, rounds=4, aggregation=secure(leave_after=0.3)), name="void"),
        problem=small_problem(torch.float32, sizes=SIZES),
        save=False,
    )
    void = result.history["void"]
    assert set(void) == {0.0, 1.0}
    assert result.summary["skipped"] == sum(void)


@pytest.mark.parametrize("evaluation", [{"every": 1}, {"every_seconds": 0.01}])
def test_where_all_break_off_the_window_closes_when_the_last_has_and_time_for_unmasking_is_over(evaluation):
    devices = {"bandwidth": {"up": 100.0, "down": 1000.0, "sigma": 0.5}, "compute": {"kind": "fixed", "seconds": 0.01}}
    gone = faults(crash=list(range(10)))
    simulation = simulated(devices=devices, faults=gone, evaluation=evaluation, rounds=1)
    engine = simulation.parts.engine
    down, up = engine.fleet._links
    d, work = len(simulation.params), np.full(10, 0.01)
    head = (612 / down + 64 / up).max() + (594 / down + 594 / up).max()
    taken = work + 8 * d / down + -(-(d + 1) * 22 // 8) / up
    shares = Streams(simulation.parts.streams.seed).uniform("faults/moment", torch.arange(10), dtype=torch.float64)
    tail = (2 / down + 170 / up).max()
    rows = list(simulation)
    assert rows[-1]["time"] == pytest.approx(head + (taken * shares.numpy()).max() + tail, abs=1e-6)
    assert rows[-1]["crashed"] > 0 or len(rows) > 1


def test_a_selector_hears_who_has_answered_and_nothing_of_what(monkeypatch):
    simulation, said = simulated(), []
    selector = type(simulation.parts.selector)
    monkeypatch.setattr(selector, "observe", lambda self, state, replies: said.append(replies) or state)
    simulation.step()
    (replies,) = said
    assert replies.clients.tolist() == list(range(10))
    assert (replies.payload, replies.metrics) == ({}, {})
