"""The one-byte code: bounds by arithmetic, on a grid of values across its whole range."""

from __future__ import annotations

import math

import pytest
import torch

from fedsim.core.errors import InputError
from fedsim.zeroth_order.codec import OneByte, Sign
from fedsim.zeroth_order.scalar_codes import unpacked

DELTA = 1 / 8
CODES = torch.arange(-127, 128, dtype=torch.int8)
# Within the grid of exponents -63 .. 63, and half a step beyond either end.
SPREAD = torch.exp(torch.linspace(-63.499 * DELTA, 63.499 * DELTA, 100_001, dtype=torch.float64))


def test_the_range_is_the_published_one():
    values = OneByte().decode(CODES, torch.float64)
    # exp(-63 / 8) = 3.80e-4 and exp(63 / 8) = 2631 (2630.9)
    assert float(values[128]) == pytest.approx(3.80e-4, rel=1e-3)
    assert float(values[-1]) == pytest.approx(2631, rel=1e-3)
    assert float(values[127]) == 0.0
    assert bool((values[1:] > values[:-1]).all())
    assert torch.equal(values, -values.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("delta", "scale"), [(DELTA, 1.0), (DELTA, 2.0**-20), (1.0, 4.0), (1e-4, 1.0)])
def test_every_code_comes_back_as_itself(delta, scale, dtype):
    codec = OneByte(delta=delta, scale=scale)
    assert torch.equal(codec.encode(codec.decode(CODES, dtype)), CODES)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_error_is_at_most_half_a_step(sign):
    found = OneByte().decode(OneByte().encode(sign * SPREAD), torch.float64)
    error = (found / (sign * SPREAD) - 1).abs()
    # The worst is half a step of the exponent: exp(1 / 16) - 1 = 6.449 %. 100,001 values come within 0.1 % of it.
    assert 0.0644 < float(error.max()) < math.expm1(DELTA / 2) * (1 + 1e-12) < 0.0645
    assert torch.equal(found.sign(), torch.full_like(found, sign))


def test_scaling_by_a_power_of_two_moves_the_range_only():
    scaled = OneByte(scale=2.0**-10)
    assert torch.equal(scaled.encode(SPREAD * 2.0**-10), OneByte().encode(SPREAD))
    assert torch.equal(scaled.decode(CODES), OneByte().decode(CODES) * 2.0**-10)


@pytest.mark.parametrize("uniform", [None, torch.full((7,), 0.5)])
@pytest.mark.parametrize("codec", [OneByte(), Sign()])
def test_nothing_and_no_number_are_zero(codec, uniform):
    values = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, -1.0])
    codes = codec.encode(values, uniform)
    assert codes.dtype == torch.int8
    unit = 64 if isinstance(codec, OneByte) else 1
    assert codes.tolist() == [0, 0, 0, 0, 0, unit, -unit]


def test_values_beyond_the_grid_saturate_and_are_counted():
    largest = math.exp(63 * DELTA)
    # Half a step beyond the grid the nearest exponent is 64.
    inside, outside = math.exp(63.49 * DELTA), math.exp(63.51 * DELTA)
    values = torch.tensor([inside, outside, -1e30, 1 / inside, -1 / outside, 1e-30, 1.0, 0.0, math.nan, math.inf])
    codec = OneByte()
    assert codec.encode(values).tolist() == [127, 127, -127, 1, -1, 1, 64, 0, 0, 0]
    assert codec.saturated(values).tolist() == [False, True, True, False, True, True, False, False, False, False]
    assert float(codec.decode(codec.encode(torch.tensor([1e30])))) == pytest.approx(largest)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("value", [0.0004, 0.7, 1.0, 1.05, 3.21, 2500.0])
def test_random_rounding_takes_neighbours_with_the_chances_that_make_the_mean_exact(value, sign):
    """n uniform numbers (i + 1/2) / n take the upper neighbour b in a share within 1/n of its chance."""
    count = 10_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    values = torch.full((count,), sign * value, dtype=torch.float64)
    codes = OneByte().encode(values, uniform)
    decoded = OneByte().decode(codes, torch.float64).abs()
    exponent = math.floor(math.log(value) / DELTA)
    low, high = math.exp(exponent * DELTA), math.exp((exponent + 1) * DELTA)
    assert set(codes.abs().tolist()) <= {exponent + 64, exponent + 65}
    assert set(codes.sign().tolist()) == {sign}
    chance = (value - low) / (high - low)
    assert abs(float((decoded > math.sqrt(low * high)).double().mean()) - chance) <= 1 / count
    assert abs(float(decoded.mean()) - value) <= (high - low) / count * (1 + 1e-9)


def test_random_rounding_is_unbiased_where_the_nearest_is_not():
    """Five standard errors: rounding errors are within exp(1/8) - 1 = 13.3 % of a value."""
    generator = torch.Generator().manual_seed(0)
    values = torch.full((100_000,), 1.06, dtype=torch.float64)
    uniform = torch.rand(len(values), generator=generator, dtype=torch.float64)
    codec = OneByte()
    assert (
        abs(float(codec.decode(codec.encode(values, uniform), torch.float64).mean()) - 1.06) < 5 * 0.142 / 100_000**0.5
    )
    # ln(1.06) / (1/8) = 0.466: the nearest is 1, always
    assert float(codec.decode(codec.encode(values), torch.float64).mean()) == 1.0


def test_random_rounding_saturates_too():
    values = torch.tensor([1e9, -1e9, 1e-9])
    for uniform in (0.0, 0.999):
        assert OneByte().encode(values, torch.full((3,), uniform)).tolist() == [127, -127, 1]


def test_the_sign_alone():
    codec = Sign(magnitude=0.5)
    assert codec.decode(codec.encode(torch.tensor([3.0, -1e-20, 0.0]))).tolist() == [0.5, -0.5, 0.0]
    # two bits a code, four a byte
    assert [codec.nbytes(count) for count in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert OneByte().nbytes(5) == 5


def test_shapes_and_precision_are_kept():
    for dtype in (torch.float32, torch.float64):
        codes = OneByte().encode(torch.ones(2, 3, dtype=dtype))
        assert codes.shape == (2, 3)
        assert OneByte().decode(codes, dtype).dtype == dtype


@pytest.mark.parametrize("bad", [{"scale": 3.0}, {"scale": 0.0}, {"delta": 0.0}, {"delta": 2.0}])
def test_grids_that_cannot_be_used_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        OneByte(**bad)


def test_two_bits_that_are_no_signs_are_a_zero():
    # Of a byte 0b11100100 the pairs are, from the lowest, 0, 1, 2 and 3: the codes -1, 0 and 1, and none.
    payload = torch.tensor([[0b11100100, 0b11111110]], dtype=torch.uint8)
    assert unpacked(Sign(), payload, 6).tolist() == [[-1, 0, 1, 0, 1, 0]]
