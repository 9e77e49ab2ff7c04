"""How long steps may be: numbers of the papers' formulas, and runs on quadratics that are as uneven as they come."""

import pytest
import torch

from fedsim.compression.steps import ef21_step, xi
from fedsim.core.errors import InputError


def test_what_a_compressor_costs():
    assert [xi(delta) for delta in (1.0, 0.5, 0.1, 0.01)] == pytest.approx([0.0, 2.41421, 18.4868, 198.4987], rel=1e-5)
    # Half of the clients a round, or a tenth, of a compressor that keeps a tenth.
    assert [xi(share * 0.1) for share in (0.5, 0.1)] == pytest.approx([38.5, 198.5], abs=0.05)


def test_steps_are_longer_where_smoothness_is_uneven():
    """Of (1, 1, 1, 100) the quadratic mean is 50.01, the arithmetic one 25.75."""
    uneven = (1.0, 1.0, 1.0, 100.0)
    assert 1 / ef21_step(uneven, 30.0, 0.1) == pytest.approx(30 + 50.0075 * xi(0.1))
    assert 1 / ef21_step(uneven, 30.0, 0.1, weighted=True) == pytest.approx(30 + 25.75 * xi(0.1))
    assert 1 / ef21_step(uneven, 30.0, 0.1, weighted=True, share=0.5) == pytest.approx(30 + 25.75 * xi(0.05))
    assert ef21_step((4.0,) * 3, 4.0, 0.2) == pytest.approx(ef21_step((4.0,) * 3, 4.0, 0.2, weighted=True))
    assert ef21_step(uneven, 30.0, 1.0) == 1 / 30
    # The three quadratics on which top-1 without feedback diverges.
    assert ef21_step((34.5,) * 3, 103 / 6, 1 / 3) == pytest.approx(0.0058591, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"delta": 0.0}, "delta = 0.0: take a share above 0"),
        ({"share": 1.5}, "share = 1.5: take a share above 0"),
        ({"smoothness": ()}, "smoothness"),
        ({"smoothness": (1.0, 0.0)}, "smoothness"),
        ({"whole": float("nan")}, "smoothness"),
    ],
)
def test_numbers_out_of_range(given, said):
    with pytest.raises(InputError, match=said):
        ef21_step(**{"smoothness": (1.0, 2.0), "whole": 1.5, "delta": 0.5, **given})


def test_at_the_longer_step_it_converges_as_theory_says():
    """Five quadratics c_i |x - a_i|^2 / 2, one of them 100 times as curved: |x - x*|^2 falls by 1 - gamma mu a step."""
    curves = torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0], dtype=torch.float64).unsqueeze(1)
    centres = torch.arange(20.0, dtype=torch.float64).view(5, 4).sin()
    best, mean = (curves * centres).sum(dim=0) / curves.sum(), float(curves.mean())
    ends = {}
    for weighted in (False, True):
        gamma = ef21_step(curves[:, 0].tolist(), mean, 0.25, weighted=weighted)
        x, h, rounds = torch.zeros(4, dtype=torch.float64), torch.zeros_like(centres), 0
        while float((x - best).norm()) > 1e-6:
            gap = curves * (x - centres) - h
            h += torch.where(gap.abs() == gap.abs().amax(dim=1, keepdim=True), gap, 0.0)
            x, rounds = x - gamma * h.mean(dim=0), rounds + 1
        ends[weighted] = rounds * gamma * mean
        assert ends[weighted] < 2 * 14.6  # twice log(1 / 1e-6), and a little for the first steps
    assert ends[True] == pytest.approx(ends[False], rel=0.2)  # as many rounds fewer as steps are longer
