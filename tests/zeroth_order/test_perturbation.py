"""Perturbation in place: agreement with drawn directions, what is left afterwards, and memory."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from fedsim.core.streams import Streams
from fedsim.nets.stack import Layout
from fedsim.zeroth_order.directions import Keys, draw
from fedsim.zeroth_order.perturbation import evaluate_pair, perturb_

STREAMS = Streams(7)
LAYOUT = Layout(("weight", "bias", "scale"), ((30, 11), (30,), ()), 3)
OWNERS = torch.tensor([4, 0, 9])
OWN = Keys("z", owner=OWNERS, turn=2, step=5)


def start(dtype=torch.float32) -> torch.Tensor:
    return Streams(1).normal("start", OWNERS, (LAYOUT.dimension,), dtype=dtype)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal, where -0 differs from 0."""
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "segmented"])
def test_each_row_moves_along_the_direction_that_is_drawn_for_it(kind, dtype):
    stack = LAYOUT.stack(start(dtype))
    distances = torch.tensor([0.5, -1.0, 3.0])
    perturb_(stack.leaves, STREAMS, OWN, distances, kind=kind)
    v = draw(kind, STREAMS, "z", OWNERS, 1, LAYOUT.dimension, turn=2, step=5, dtype=dtype)[:, 0]
    assert torch.equal(stack.flat(), start(dtype) + distances.to(dtype).unsqueeze(1) * v)


def test_rows_may_share_a_direction():
    stack = LAYOUT.stack(start())
    perturb_(stack.leaves, STREAMS, Keys("z", owner=4, turn=2, step=5), 0.25)
    v = draw("gaussian", STREAMS, "z", OWNERS[:1], 1, LAYOUT.dimension, turn=2, step=5)[0]
    assert torch.equal(stack.flat(), start() + 0.25 * v)


@pytest.mark.parametrize("block", [1, 10, 129, 2**16])
def test_blocks_leaves_and_company_do_not_show(block):
    whole, alone = start(), start()[1:2]
    perturb_([whole], STREAMS, OWN, 0.1)
    stack = LAYOUT.stack(start())
    perturb_(stack.leaves, STREAMS, OWN, 0.1, block=block)
    assert same_bits(stack.flat(), whole)
    perturb_([alone], STREAMS, OWN[1:2], 0.1, block=block)
    assert same_bits(alone, whole[1:2])


def test_a_row_that_does_not_move_keeps_its_bits():
    rows = start()
    rows[:, ::2] = -0.0
    moved = rows.clone()
    perturb_([moved], STREAMS, OWN, torch.tensor([0.0, 0.5, -0.0]))
    assert same_bits(moved[::2], rows[::2])
    expected = rows[1:2].clone()
    perturb_([expected], STREAMS, OWN[1:2], 0.5)
    assert same_bits(moved[1:2], expected)
    perturb_([moved], STREAMS, OWN, 0.0)
    assert same_bits(moved[1:2], expected)


def test_names_of_the_wrong_number_are_refused():
    with pytest.raises(ValueError, match="2 keys do not name the directions of 3 rows"):
        perturb_([start()], STREAMS, OWN[:2], 1.0)


@pytest.mark.parametrize("exact", [False, True])
def test_a_pair_of_evaluations_on_a_quadratic(exact):
    """F(x) = |x|^2 / 2: (F(x + r v) - F(x - r v)) / (2 r) = x.v for any r."""
    rows = start(torch.float64)
    stack = LAYOUT.stack(rows)
    plus, minus = evaluate_pair(
        stack.leaves, STREAMS, OWN, 0.5, lambda: stack.flat().square().sum(dim=1) / 2, exact=exact
    )
    v = draw("gaussian", STREAMS, "z", OWNERS, 1, LAYOUT.dimension, turn=2, step=5, dtype=torch.float64)[:, 0]
    torch.testing.assert_close(plus - minus, (rows * v).sum(dim=1), atol=1e-11, rtol=0)
    torch.testing.assert_close(stack.flat(), rows, atol=1e-14, rtol=0)


def test_what_is_left_after_a_pair():
    """Three roundings of at most half a unit in the last place of |x| + radius |v| each; none with a copy."""
    rows, radius = start(), 1e-3
    rows[:, ::3] = 0.0
    stack = LAYOUT.stack(rows)
    evaluate_pair(stack.leaves, STREAMS, OWN, radius, lambda: torch.zeros(3))
    v = draw("gaussian", STREAMS, "z", OWNERS, 1, LAYOUT.dimension, turn=2, step=5)[:, 0]
    reach = rows.abs() + radius * v.abs()
    unit = torch.nextafter(reach, torch.full_like(reach, torch.inf)) - reach
    left = (stack.flat() - rows).abs()
    assert bool((left <= 1.5 * unit).all())
    assert int((left > 0).sum()) > 100
    evaluate_pair(stack_ := LAYOUT.stack(rows).leaves, STREAMS, OWN, radius, lambda: torch.zeros(3), exact=True)
    assert all(same_bits(mine, own) for mine, own in zip(stack_, LAYOUT.stack(rows).leaves, strict=True))


def test_the_evaluations_see_the_same_points_with_and_without_a_copy():
    """With a copy both are one rounding away from x, so the first is the same bit for bit."""
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for exact, points in seen.items():
        stack = LAYOUT.stack(start())

        def look(points=points, stack=stack) -> torch.Tensor:
            points.append(stack.flat())
            return torch.zeros(3)

        evaluate_pair(stack.leaves, STREAMS, OWN, 0.01, look, exact=exact)
    v = draw("gaussian", STREAMS, "z", OWNERS, 1, LAYOUT.dimension, turn=2, step=5)[:, 0]
    for points in seen.values():
        assert same_bits(points[0], start() + 0.01 * v)
        torch.testing.assert_close(points[1], start() - 0.01 * v, atol=1e-6, rtol=0)
    assert same_bits(seen[True][1], start() - 0.01 * v)


def test_a_million_parameters_are_perturbed_in_a_fifth_of_their_memory():
    """Of 4 MB; NumPy's part, in which words are drawn, as that of the tensors is smaller and not traced."""
    leaf = torch.zeros(1, 1_000_000)
    tracemalloc.start()
    perturb_([leaf], STREAMS, Keys("z"), 1e-3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 10_000 < peak < 800_000
