"""The bounds of the mechanisms hold for the distributions themselves."""

import math

import numpy as np
import pytest
from scipy import stats

from codream_secure.privacy.accounting import Release, privacy_cost, training
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


def shares_of(variance, count):
    """Return the probabilities of a sum of shares on -K..K, by convolution."""
    reach = math.ceil(14 * math.sqrt(variance))
    share = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    share /= share.sum()
    total, rest, power = np.ones(1), count, share
    while rest:
        if rest % 2:
            total = np.convolve(total, power)
        power, rest = np.convolve(power, power), rest // 2
    return total


def shifted(law, by):
    """Return a law, and the same one moved, on a common range."""
    return np.pad(law, (0, by)), np.pad(law, (by, 0))


def delta_of(p, q, epsilon):
    return np.maximum(p - math.exp(epsilon) * q, 0).sum()


def gaussian_delta(multiplier, epsilon):
    """Balle and Wang, ICML 2018, theorem 5."""
    half, part = 0.5 / multiplier, epsilon * multiplier
    below = math.exp(epsilon) * stats.norm.cdf(-half - part)
    return stats.norm.cdf(half - part) - below


EPSILONS = (0.0, 0.1, 1.0, 3.0)


# 8 and 10 are the least and nearly least variances; 7 and 10 clients have 6 and 9 secret shares.
@pytest.mark.parametrize("variance", [8, 10, 40])
@pytest.mark.parametrize("shares", [1, 2, 3, 6, 9, 66])
def test_sums_of_shares_are_as_private_as_the_gaussian_that_bounds_them(shares, variance):
    """The exact sum, in one coordinate (docs/accounting.md)."""
    law = shares_of(variance, shares)
    for shift in (1, 3, 8, 15):
        multiplier = DiscreteGaussianSum(shift, shift, 1, variance, shares).noise_multiplier
        p, q = shifted(law, shift)
        for epsilon in EPSILONS:
            bound = gaussian_delta(multiplier, epsilon)
            assert delta_of(p, q, epsilon) <= bound * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("shares", [2, 6, 9])
@pytest.mark.parametrize("shift", [(1, 1), (2, 1), (5, 3)])
def test_the_bound_holds_in_two_coordinates(shares, shift):
    law = shares_of(8, shares)
    (p, q), (r, s) = (shifted(law, by) for by in shift)
    l2 = math.hypot(*shift)
    multiplier = DiscreteGaussianSum(l2, sum(shift), 2, 8, shares).noise_multiplier
    for epsilon in EPSILONS:
        found = delta_of(np.outer(p, r), np.outer(q, s), epsilon)
        assert found <= gaussian_delta(multiplier, epsilon) * (1 + 1e-9) + 1e-15


def test_the_gaussian_of_the_whole_variance_would_be_no_bound():
    law, above = shares_of(8, 2), 0
    for shift in (1, 3, 8):
        p, q = shifted(law, shift)
        for epsilon in EPSILONS:
            above += delta_of(p, q, epsilon) > gaussian_delta(4 / shift, epsilon) * (1 + 1e-6)
    assert above


@pytest.mark.parametrize("squared", [0.5, 0.75, 1.0])
def test_sums_of_exponentials_are_constant_up_to_the_gap(squared):
    """Step 1 of the proof, at variances where floating point can see the gap."""
    ks = np.arange(-60, 61)
    values = [np.exp(-((ks - y) ** 2) / (2 * squared)).sum() for y in np.linspace(0, 1, 41)]
    off = np.abs(np.array(values) / math.sqrt(2 * math.pi * squared) - 1).max()
    gap = 2.0001 * math.exp(-2 * math.pi**2 * squared)
    assert 0.99 * gap < off <= gap


def test_the_slack_counts_shares_and_coordinates():
    few, many = (DiscreteGaussianSum(1, 1, d, 8, n).slack for d, n in ((1, 1), (10**7, 1000)))
    assert 0 < few < 1e-33
    assert many == pytest.approx(few * 10**7 * 2002 / 4)
    assert many < 1e-22


def test_a_small_share_is_no_privacy_that_could_be_accounted():
    small = DiscreteGaussianSum(1, 1, 1, 7.9, 100)
    assert small.noise_multiplier == 0.0
    assert math.isinf(small.rdp(1, np.array([2.0]))[0])
    made = Release(name="s", unit="example", adjacency="a", mechanism=small)
    assert math.isinf(privacy_cost([made], 1e-5).epsilon)
    assert math.isinf(privacy_cost([made, training(4.0, 0.5, 3)], 1e-5).epsilon)


@pytest.mark.parametrize("shares", [2, 9])
def test_the_divergence_of_the_sum_itself_is_below_the_bound(shares):
    p, q = shifted(shares_of(8, shares), 2)
    kept = (p > 1e-250) & (q > 1e-250)
    mechanism = DiscreteGaussianSum(2, 2, 1, 8, shares)
    for order in (2, 3, 8):
        terms = order * np.log(p[kept]) - (order - 1) * np.log(q[kept])
        divergence = np.logaddexp.reduce(terms) / (order - 1)
        assert divergence <= mechanism.rdp(1, np.array([float(order)]))[0]


def test_no_secret_share_is_no_privacy():
    assert math.isinf(DiscreteGaussianSum(1, 1, 1, 5.0, 0).rdp(1, np.array([2.0]))[0])
