"""Releases compose to what dp_accounting, formulas and brute force say they cost."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import (
    Release,
    cost,
    epsilon_spent,
    group_epsilon,
    integer_variance,
    training,
    training_noise,
)
from codream_secure.privacy.mechanisms import DiscreteGaussianSum, SampledGaussian, SkellamSum

DELTA = 1e-5


def skellam(l2, l1, variance, steps=1):
    mechanism = SkellamSum(l2, l1, variance)
    return Release(name="s", unit="example", adjacency="a", mechanism=mechanism, steps=steps)


def skellam_variance(epsilon, l2, l1):
    return l2**2 * integer_variance(epsilon, DELTA, lambda v: SkellamSum(l2, l1, v * l2**2))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("q", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("noise", [0.7, 2.0, 8.0])
@pytest.mark.parametrize("steps", [1, 60])
def test_the_bound_by_rdp_is_never_below_that_by_pld(q, noise, steps):
    found = cost([training(noise, q, steps)], DELTA)
    assert found.rdp >= found.epsilon
    assert found.epsilon == min(found.rdp, epsilon_spent(noise, q, steps, DELTA))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_fine_skellam_noise_costs_what_gaussian_noise_does(epsilon):
    """Agarwal, Kairouz, Liu 2021: as the grid gets finer the two agree; RDP against RDP."""
    l2 = 1000.0
    total = skellam_variance(epsilon, l2, l2 * 30)
    gaussian = cost([training(math.sqrt(total) / l2, 1.0, 1)], DELTA).rdp
    assert cost([skellam(l2, l2 * 30, total)], DELTA).epsilon == pytest.approx(gaussian, rel=2e-3)
    assert 0.99 * epsilon < gaussian <= epsilon * 1.001


@pytest.mark.parametrize(("shift", "variance"), [(1, 4), (3, 9), (5, 100)])
def test_the_bound_holds_for_the_distribution_itself(shift, variance):
    """Renyi divergence of two shifted Skellam distributions, summed over their support."""
    ks = np.arange(-400, 401)
    log_p = stats.skellam.logpmf(ks, variance / 2, variance / 2)
    log_q = stats.skellam.logpmf(ks - shift, variance / 2, variance / 2)
    kept = np.isfinite(log_p) & np.isfinite(log_q) & (log_p > -200)
    mechanism = SkellamSum(shift, shift, variance)
    for order in (2, 3, 8):
        terms = order * log_p[kept] - (order - 1) * log_q[kept]
        divergence = np.logaddexp.reduce(terms) / (order - 1)
        assert divergence <= mechanism.rdp(1, np.array([float(order)]))[0]


def discrete_gaussian(variance, reach=200):
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    return weights / weights.sum()


@pytest.mark.parametrize("variance", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shares", [1, 2, 5])
def test_the_bound_for_discrete_gaussian_shares_holds_for_the_distribution_itself(variance, shares):
    """Renyi divergence of two shifted sums of shares, by convolution."""
    law = discrete_gaussian(variance)
    total = law
    for _ in range(shares - 1):
        total = np.convolve(total, law)
    shift = 2
    p, q = total[shift:], total[:-shift]
    kept = (p > 1e-250) & (q > 1e-250)
    mechanism = DiscreteGaussianSum(shift, shift, 1, variance, shares)
    for order in (2, 3, 8):
        terms = order * np.log(p[kept]) - (order - 1) * np.log(q[kept])
        divergence = np.logaddexp.reduce(terms) / (order - 1)
        assert divergence <= mechanism.rdp(1, np.array([float(order)]))[0] * (1 + 1e-12)


def test_many_shares_of_little_gaussian_noise_are_charged_for_the_difference():
    """With a variance of one share of 1 tau is 5e-4, with 1.5 it is 4e-6."""
    assert DiscreteGaussianSum(1, 1, 1, 1.0, 2).gap == pytest.approx(5e-4, rel=0.1)
    assert DiscreteGaussianSum(1, 1, 1, 1.22**2, 2).gap == pytest.approx(4e-6, rel=0.2)
    fine, coarse = (
        DiscreteGaussianSum(30 * s, 30 * s * 64, 4096, s * s * 900, 10).rdp(1, np.array([8.0]))[0]
        for s in (1.0, 0.02)
    )
    assert coarse > 2 * fine


def test_no_secret_share_is_no_privacy():
    assert math.isinf(DiscreteGaussianSum(1, 1, 1, 5.0, 0).rdp(1, np.array([2.0]))[0])


def test_a_missing_share_of_noise_costs_more():
    full, less = (cost([skellam(100, 900, shares * 5000)], DELTA).epsilon for shares in (6, 5))
    assert less > full
    assert math.isinf(cost([skellam(100, 900, 0)], DELTA).epsilon)


def test_nothing_released_costs_nothing_and_units_do_not_mix():
    assert cost([training(1.0, 1.0, 0)], DELTA).epsilon == 0
    of_clients = Release(
        name="c", unit="client", adjacency="", mechanism=SampledGaussian(1.0), steps=1
    )
    with pytest.raises(ValueError, match="units"):
        cost([training(1.0, 1.0, 1), of_clients], DELTA)


@pytest.mark.parametrize(("epsilon", "part"), [(1.0, 0.85), (2.0, 1.7), (8.0, 2.0)])
@pytest.mark.parametrize("q", [1.0, 0.4])
def test_training_fits_beside_other_releases(epsilon, part, q):
    other = skellam(129, 1040, skellam_variance(part, 129, 1040))
    noise = training_noise(epsilon, DELTA, q, 40, (other,))
    assert 0.985 * epsilon < cost([training(noise, q, 40), other], DELTA).epsilon <= epsilon
    assert noise > training_noise(epsilon, DELTA, q, 40)


def test_what_leaves_nothing_for_training_is_refused():
    other = skellam(129, 1040, skellam_variance(1.0, 129, 1040))
    with pytest.raises(UserError, match="leaves nothing for training"):
        training_noise(0.9, DELTA, 1.0, 40, (other,))


def test_a_group_of_gaussian_releases_is_exact():
    """One Gaussian release of epsilon 8 protects 2, 3 and 5 records with these."""
    release = [training(0.6002, 1.0, 1)]
    for size, expected in ((2, 19.1), (3, 33.1), (5, 69.4)):
        assert group_epsilon(release, DELTA, size) == pytest.approx(expected, abs=0.15)


def test_a_group_in_sums_of_everybody_is_composed_as_it_stands():
    gaussian, discrete = training(2.0, 1.0, 3), training(3.0, 1.0, 2, integers=True)
    releases = [gaussian, discrete, skellam(50, 400, 40_000)]
    scaled = [training(0.5, 1.0, 3), training(0.75, 1.0, 2, integers=True)]
    scaled.append(skellam(200, 1600, 40_000))
    found = group_epsilon(releases, DELTA, 4)
    assert found == pytest.approx(cost(scaled, DELTA).epsilon, rel=1e-3)
    assert group_epsilon(releases, DELTA, 1) == cost(releases, DELTA).epsilon


def test_a_group_for_which_no_delta_is_small_enough_has_no_epsilon():
    releases = [training(0.7, 0.5, 40)]
    assert math.isfinite(group_epsilon(releases, DELTA, 2))
    assert math.isinf(group_epsilon(releases, DELTA, 5))


@settings(max_examples=8, deadline=None)
@given(st.floats(20, 200), st.integers(2, 5))
def test_a_group_costs_at_least_its_size_times_one(noise, size):
    releases = [training(noise, 0.5, 40), skellam(10, 80, (noise * 4) ** 2)]
    assert group_epsilon(releases, DELTA, size) >= size * cost(releases, DELTA).rdp


def test_the_ledger_needs_neither_torch_nor_opacus():
    code = (
        "import sys, codream_secure.privacy.accounting\n"
        "print({'torch', 'opacus'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
