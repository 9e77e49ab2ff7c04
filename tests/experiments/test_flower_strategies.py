"""A strategy of ours is one run, whether its clients are a stack, or nodes that are sent messages."""

import pytest

from experiments.flower_strategies import agreement

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
