"""Chains of seeds: the same bits from the beginning and from the parent, and what they take as they cross."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedsim.core.streams import Streams
from fedsim.nets.stack import Layout
from fedsim.zeroth_order import Chains, Genome, Keys, first_scale, part
from fedsim.zeroth_order.chains import _KNOWN

D = 37
SEED = torch.tensor([5])


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    _KNOWN.clear()
    yield
    _KNOWN.clear()


def genome(dtype: torch.dtype = torch.float32) -> Genome:
    return Genome(SEED, torch.linspace(-1.0, 1.0, D, dtype=dtype), torch.linspace(0.1, 2.0, D, dtype=dtype))


def family(generations: int, size: int = 4) -> list[Chains]:
    """Generations of chains, each of children of the one before."""
    found = [Chains.begun(torch.arange(size))]
    for number in range(1, generations):
        places = (torch.arange(size) * 7 + number) % size
        found.append(found[-1].children(places, torch.arange(size) + number * size, 0.1 * number))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chain_is_its_additions_in_their_order(dtype: torch.dtype) -> None:
    own = genome(dtype)
    chain = family(5)[-1][torch.tensor([2])]

    def e(seed: int) -> torch.Tensor:
        keys = Keys("gene", owner=torch.tensor([seed]))
        return part("gaussian", Streams(5), keys, 0, D, dtype=dtype, device=own.start.device)[0]

    theta = own.start + own.scale * e(int(chain.seeds[0, 0]))
    for seed, power in zip(chain.seeds[0, 1:].tolist(), chain.powers[0, 1:].to(dtype), strict=True):
        theta = theta + power * e(seed)
    assert torch.equal(own.whole(chain)[0], theta)
    assert chain.powers.tolist()[0] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_from_the_parent_it_has_the_bits_that_it_has_from_the_beginning() -> None:
    own, told = genome(), 0
    for chains in family(30):
        stepwise = own.rebuilt(chains)
        assert torch.equal(stepwise, own.whole(chains))
        told += int((stepwise[0] != stepwise[1]).sum())
    assert told > 29 * D / 2
    last = family(30)[-1]
    _KNOWN.clear()  # as in a process that has just begun
    assert torch.equal(own.rebuilt(last), own.whole(last))


def test_what_is_at_hand_is_of_the_same_seed_start_and_scale_alone() -> None:
    own, chains = genome(), family(3)[-1]
    own.rebuilt(chains)
    for other in (
        Genome(SEED + 1, own.start, own.scale),
        Genome(SEED, own.start + 1.0, own.scale),
        Genome(SEED, own.start, own.scale * 2.0),
        genome(torch.float64),
    ):
        assert torch.equal(other.rebuilt(chains), other.whole(chains))


def test_little_is_kept_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.zeroth_order.chains.AT_HAND", 1000)
    own = genome()
    for chains in family(6):
        assert torch.equal(own.rebuilt(chains), own.whole(chains))
    assert 0 < _KNOWN._nbytes <= 1000
    assert len(_KNOWN._held) < 6


def test_a_chain_takes_8_bytes_and_12_a_gene() -> None:
    chains = family(4)
    assert [one.nbytes.tolist() for one in chains] == [[8 + 12 * genes] * 4 for genes in range(4)]
    both = chains[1].and_then(chains[3])
    assert both.nbytes.tolist() == [20] * 4 + [44] * 4
    assert torch.equal(genome().whole(both), torch.cat((genome().whole(chains[1]), genome().whole(chains[3]))))
    assert both[torch.tensor([0, 1])].seeds.shape == (2, 2)
    assert both.last.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]


def test_first_models_vary_by_the_fan_in_and_biases_begin_at_zero() -> None:
    layout = Layout(("w", "b", "k"), ((3, 4), (3,), (2, 3, 3, 3)), 3)
    start, scale = first_scale(layout, 2.0, torch.ones(12 + 3 + 54))
    assert not start.any()
    assert scale[:12].tolist() == [1.0] * 12
    assert scale[12:15].tolist() == [0.0] * 3
    assert scale[15:].tolist() == pytest.approx([2.0 / 27**0.5] * 54)
    start, scale = first_scale(Layout.flat(3), 0.5, torch.tensor([1.0, 2.0, 3.0]))
    assert (start.tolist(), scale.tolist()) == ([1.0, 2.0, 3.0], [0.5] * 3)
