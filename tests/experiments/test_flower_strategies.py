"""A strategy of ours is one run, whether its clients are a stack, or nodes that are sent messages."""

import pytest

from experiments.benchmarks import flower_strategies as benchmark
from experiments.flower_strategies import agreement, sleeping
from experiments.flower_strategies.places import virtually

ROUNDS = 4


@pytest.fixture(scope="module")
def wanted():
    return agreement.in_one_process(ROUNDS)


def test_messages_on_a_virtual_grid_change_nothing(wanted, tmp_path):
    found = agreement.differences("virtual grid", ROUNDS, wanted, tmp_path / "out")
    assert max(found.values()) < agreement.TOLERANCE, found
    sizes = {name: abs(params).max() for name, params in wanted.items()}
    assert len({round(float(size), 4) for size in sizes.values()}) == len(agreement.METHODS), sizes


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("place", ["Ray", "SuperNodes"])
def test_processes_and_networks_change_nothing(wanted, place, tmp_path):
    pytest.importorskip("ray")
    found = agreement.differences(place, ROUNDS, wanted, tmp_path / "out")
    assert max(found.values()) < agreement.TOLERANCE, found


def test_in_virtual_time_the_order_of_replies_is_that_of_their_durations(tmp_path):
    """Nodes take 2.5, 3.5, 4.5 and 5.5 s; of each reply: node, the version that it was sent, the one that it moved."""
    config = {"methods": " ".join(sleeping.PAIRED), "duration": sleeping.UNTIL, "out": tmp_path}
    virtually(len(sleeping.APART), config, dict(enumerate(sleeping.APART)))
    # A window ends each second: node 0 is in the third, from 3 s on it has version 3, and it is in the sixth at 5.5 s.
    assert sleeping.uses(tmp_path / "FedFix") == [
        (0, 0, 2), (1, 0, 3), (2, 0, 4), (0, 3, 5), (3, 0, 5), (1, 4, 7), (0, 6, 8),
    ]  # fmt: skip
    # Replies at 2.5 and 3.5, 4.5 and 5.0, 5.5 and 7.0, 7.5 and 9.0 s make a step each; node 0 starts again at 2.5 s.
    assert sleeping.uses(tmp_path / "FedBuff-2") == [
        (0, 0, 0), (1, 0, 0), (0, 0, 1), (2, 0, 1), (1, 1, 2), (3, 0, 2), (0, 2, 3), (2, 1, 3),
    ]  # fmt: skip
    # FedFix's nodes wait for the window's end, and at least one for half of it; FedBuff's do not wait.
    assert sleeping.waited(tmp_path / "FedFix") == 0.5
    assert sleeping.waited(tmp_path / "FedBuff-2") == 0.0


def test_the_benchmark_measures_what_it_names(capsys):
    benchmark.main(nodes=5, rounds=1, turns=1)
    said = capsys.readouterr().out
    assert all(name in said for name in (benchmark.BARE, benchmark.THEIRS, *benchmark.OURS))
