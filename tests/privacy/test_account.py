"""Epsilon of the published settings, by each law and accountant."""

from __future__ import annotations

import math

import pytest

from fedsim.core.errors import InputError
from fedsim.privacy.account import Account, Everyone, Fixed, Poisson, least_noise

SETTINGS = [
    (256 / 60000, 1.3, 3515, 1e-5, 0.9544, 0.8645),
    (256 / 60000, 1.1, 14062, 1e-5, 2.5966, 2.3817),
    (256 / 60000, 0.7, 10546, 1e-5, 6.3195, 5.6394),
    (256 / 60000, 0.7, 16406, 1e-5, 7.8393, 7.0948),
    (0.04, 1.5, 2250, 1e-5, 7.3293, 6.7688),
    (0.1, 3.0, 512, 1e-6, 4.0510, 3.7697),
    (0.05, 1.0, 200, 1e-4, 4.5950, 3.9993),
    (0.0278, 1.0, 500, 1e-5, 4.4227, 3.9533),
    (0.1, 1.0, 100, 1e-3, 5.6551, 4.7844),
]
"""q, z, sums, delta, and epsilon by RDP and PLD: of TensorFlow Privacy, the Gaussian-DP paper, Opacus, jax_privacy."""


@pytest.mark.parametrize(("rate", "multiplier", "sums", "delta", "by_rdp", "by_pld"), SETTINGS)
def test_published_settings(rate, multiplier, sums, delta, by_rdp, by_pld):
    found = Account("rdp", Poisson(rate), multiplier, delta).epsilon(sums)
    assert found == pytest.approx(by_rdp, rel=1e-3)
    if (rate, sums) == (0.04, 2250):  # the others cost half a second each
        assert Account("pld", Poisson(rate), multiplier, delta).epsilon(sums) == pytest.approx(by_pld, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "multiplier", "sums", "delta", "by_rdp", "by_pld"), SETTINGS)
def test_published_settings_by_loss_distributions(rate, multiplier, sums, delta, by_rdp, by_pld):
    assert Account("pld", Poisson(rate), multiplier, delta).epsilon(sums) == pytest.approx(by_pld, rel=1e-3)


@pytest.mark.parametrize(
    ("population", "cohort", "multiplier", "sums", "delta", "epsilon"),
    [(10000, 100, 1, 1000, 1e-5, 20.987), (1000, 50, 2, 200, 1e-4, 8.1282), (100, 10, 4, 100, 1e-3, 3.9845)],
)
def test_a_fixed_cohort_has_twice_the_sensitivity(population, cohort, multiplier, sums, delta, epsilon):
    """Noise of z C hides a replaced client, which moves the sum by 2 C, half as well: 3.58 would be wrong, of z."""
    account = Account("rdp", Fixed(population, cohort), multiplier, delta)
    assert account.epsilon(sums) == pytest.approx(epsilon, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("population", "cohort", "multiplier", "sums", "delta", "epsilon"),
    [(10000, 100, 1, 1000, 1e-5, 15.161), (1000, 50, 2, 200, 1e-4, 6.1801), (100, 10, 4, 100, 1e-3, 3.1183)],
)
def test_a_fixed_cohort_by_loss_distributions(population, cohort, multiplier, sums, delta, epsilon):
    account = Account("pld", Fixed(population, cohort), multiplier, delta)
    assert account.epsilon(sums) == pytest.approx(epsilon, rel=1e-3)


def test_without_sampling_sums_add_up_to_one_with_less_noise():
    """100 sums of z 4 are one of z 0.4; one of z 1 spends 4.7285 at 1e-5, exactly 4.3772."""
    account = Account("rdp", Everyone(), 4.0, 1e-5)
    assert account.epsilon(100) == pytest.approx(14.1322, rel=1e-3)
    assert account.epsilon(100) == pytest.approx(Account("rdp", Everyone(), 0.4, 1e-5).epsilon(1), rel=1e-6)
    assert Account("rdp", Everyone(), 1.0, 1e-5).epsilon(1) == pytest.approx(4.7285, rel=1e-3)


def test_what_one_sum_costs_composed_is_what_all_cost():
    """Against the library's own composition."""
    import dp_accounting
    from dp_accounting import rdp

    whole = rdp.RdpAccountant()
    whole.compose(dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(1.5)), 37)
    assert Account("rdp", Poisson(0.2), 1.5, 1e-4).epsilon(37) == pytest.approx(float(whole.get_epsilon(1e-4)), 1e-9)


def test_edges():
    assert Account("rdp", Poisson(0.1), 0.0, 1e-3).epsilon(3) == math.inf
    assert Account("rdp", Poisson(0.1), 0.0, 1e-3).epsilon(0) == 0.0
    spent = [Account("rdp", Poisson(0.1), 1.0, 1e-3).epsilon(sums) for sums in (1, 2, 10)]
    assert spent == sorted(spent)
    assert Account("rdp", Poisson(0.1), 2.0, 1e-3).epsilon(10) < spent[-1]
    assert Account("rdp", Poisson(0.05), 1.0, 1e-3).epsilon(10) < spent[-1]


def test_a_target_gives_the_least_noise():
    found = least_noise("rdp", Poisson(0.01), 1000, 2.0, 1e-5)
    assert found == pytest.approx(1.0224, rel=1e-3)
    assert Account("rdp", Poisson(0.01), found, 1e-5).epsilon(1000) <= 2.0


def test_a_target_that_no_noise_reaches_is_refused():
    with pytest.raises(InputError, match=r"^privacy\.epsilon = 1e-07: no noise that could be found"):
        least_noise("rdp", Everyone(), 1000, 1e-7, 1e-300)
