"""The benchmark of judging has both sides measure the same of a model, and adds up what it says."""

from dataclasses import replace

import pytest
import torch

from experiments.benchmarks import judging
from experiments.benchmarks.engine import Fedsim
from experiments.benchmarks.judging import (
    Judgements,
    Measured,
    Setting,
    judged_by_their_own,
    judged_plainly,
    measure,
    pace_of,
    protocol,
    table_of,
    table_of_own,
)


@pytest.fixture(scope="module")
def tiny():
    """Four clients of 20 images [3, 8, 8], of which two work in a round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "SHAPE", (3, 8, 8))
        patch.delenv("FEDSIM_DATA", raising=False)
        work = protocol(clients=4, per_round=2, test=30)
    return replace(work, model=lambda: judging.network((3, 8, 8), hidden=8))


def test_both_sides_measure_the_same(tiny):
    ours = Fedsim(tiny, "auto")
    ours.start()
    found = ours.problem.evaluate(ours.simulation.state.params, clients=True)
    assert judged_plainly(tiny.model(), tiny, clients=True) == pytest.approx(found, abs=1e-6)
    assert judged_plainly(tiny.model(), tiny, clients=False).keys() == {"test_loss", "test_accuracy"}


def test_a_round_counts_its_share_of_a_judgement(tiny):
    own = Measured(training=[3.0, 1.0, 2.0], judging=[40.0, 50.0, 60.0], test=[8.0])
    assert own.together("judging", 50) == 2.0 + 50.0 / 50
    assert own.together("test", 10) == 2.0 + 0.8
    table = table_of({"fedsim": own, "plain loop (1)": replace(own, training=[5.0])}, 50, tiny)
    *_, rounds, ratio = table.columns
    assert list(rounds.cells) == ["3,000", "2,800", "52,000", "6,000", "5,800", "55,000"]
    assert list(ratio.cells)[:4] == ["0.50", "0.47", "8.67", "1.00"]


def test_everything_is_measured_as_often(tiny):
    found = measure(tiny, 2, (1,))
    assert found.keys() == {"fedsim", "plain loop (1)"}
    assert all(len(own.training) == len(own.judging) == len(own.test) == 2 for own in found.values())
    assert pace_of(tiny) == 1  # cheap


def test_the_network_is_that_of_the_protocol():
    """896 + 18,496 + (64 x 14 x 14 x 128 + 128) + 1,290 parameters."""
    assert sum(own.numel() for own in judging.network().parameters()) == 1_626_442
    assert judging.network()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("shape", "whole"), [((6,), True), ((6,), False), ((1, 8, 8), True)])
def test_clients_own_models_and_one_for_all_are_judged_as_often(shape, whole):
    found = judged_by_their_own(Setting("small", shape, 3, alike=False, whole=whole), 2, clients=4)
    assert [len(taken) for taken in vars(found).values()] == [2] * 4
    assert min(map(min, vars(found).values())) > 0.0


def test_what_own_models_cost_is_said_in_times_of_one_for_all():
    found = Judgements([0.001, 0.002, 0.009], [0.003], [0.004], [0.005])
    table = table_of_own({Setting("MLP", (6,), 3, whole=False).label: found})
    assert [list(column.cells) for column in table.columns] == [
        ["MLP, head, 3 each"],
        *(["2.00"], ["3.00"], ["1.50"]),
        *(["4.00"], ["5.00"], ["1.25"]),
    ]
