"""The bounds of the mechanisms hold for the distributions themselves."""

import math

import numpy as np
import pytest
from scipy import stats

from codream_secure.privacy.mechanisms import DiscreteGaussianSum, SkellamSum


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
