import math

import pytest
import torch

from fedsim.zeroth_order.surrogates.kernels import RBF, Matern52

EVERY = [Matern52(), RBF()]


def test_values_by_hand():
    # At |x - x'| = 2 and l = 2: r = sqrt(5), so (1 + sqrt(5) + 5/3) e^-sqrt(5); and e^(-1/2).
    distance = torch.tensor([0.0, 2.0], dtype=torch.float64)
    root = math.sqrt(5)
    assert Matern52().value(distance, 2.0).tolist() == pytest.approx(
        [1, (1 + root + 5 / 3) * math.exp(-root)], rel=1e-14
    )
    assert RBF().value(distance, 2.0).tolist() == pytest.approx([1, math.exp(-0.5)], rel=1e-14)
    # Slopes: 5 / (3 * 4) (1 + sqrt(5)) e^-sqrt(5), and e^(-1/2) / 4.
    assert Matern52().slope(distance, 2.0)[1].item() == pytest.approx(5 / 12 * (1 + root) * math.exp(-root), rel=1e-14)
    assert RBF().slope(distance, 2.0)[1].item() == pytest.approx(math.exp(-0.5) / 4, rel=1e-14)
    assert Matern52().gradient_variance(2.0) == 5 / 12
    assert RBF().gradient_variance(2.0) == 1 / 4


@pytest.mark.parametrize("kernel", EVERY)
def test_the_slope_is_the_derivative_over_the_distance(kernel):
    # dk/dx = k'(u) (x - a) / u with u = |x - a|, so the slope is -k'(u) / u.
    distance = torch.tensor([0.01, 0.3, 1.0, 4.0], dtype=torch.float64)
    step = 1e-6
    for scale in (0.5, 3.0):
        rise = (kernel.value(distance + step, scale) - kernel.value(distance - step, scale)) / (2 * step)
        # The differences of values near 1 have 1e-16 / 2e-6 of rounding, which is divided by 0.01.
        torch.testing.assert_close(kernel.slope(distance, scale), -rise / distance, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kernel", EVERY)
def test_the_gradients_variance_is_the_kernels_mixed_derivative_at_distance_0(kernel):
    # d2k(x, x')/dx dx' at x' = x is -k''(0) = 2 (1 - k(h)) / h^2 as h -> 0; the next term is of order h / l.
    step = torch.tensor(1e-4, dtype=torch.float64)
    for scale in (0.5, 3.0):
        found = (2 * (1 - kernel.value(step, scale)) / step**2).item()
        assert found == pytest.approx(kernel.gradient_variance(scale), rel=1e-3)
        assert kernel.slope(0 * step, scale).item() == pytest.approx(kernel.gradient_variance(scale), rel=1e-15)


@pytest.mark.parametrize("kernel", EVERY)
def test_a_length_scale_for_each_client(kernel):
    distance = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = distance.clone()
    scales = torch.tensor([0.5, 3.0], dtype=torch.float64)
    for function in (kernel.value, kernel.slope):
        found = function(distance, scales.reshape(2, 1, 1))
        for client, scale in enumerate(scales.tolist()):
            torch.testing.assert_close(found[client], function(distance[client], scale), rtol=1e-14, atol=0)
    assert torch.equal(distance, before)
    each = [kernel.gradient_variance(scale) for scale in scales.tolist()]
    assert kernel.gradient_variance(scales).tolist() == pytest.approx(each, rel=1e-15)


@pytest.mark.parametrize("kernel", EVERY)
def test_far_apart_is_exactly_0(kernel):
    far = torch.tensor([1e100], dtype=torch.float64)
    for scale in (1e-3, 1e3):
        assert kernel.value(far, scale).item() == 0
        assert kernel.slope(far, scale).item() == 0
