"""Integer noise is the distribution it says, drawn from all of its key, and adds up."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from codream_secure.privacy.integer_noise import IntegerNoise

KEY = bytes(range(32))


def exact_poisson(mean, terms):
    """Return the Poisson weights up to the factor e^-mean, as fractions."""
    return [Fraction(mean) ** k / math.factorial(k) for k in range(terms)]


@pytest.mark.parametrize("variance", [1, 2, 7])
def test_thresholds_are_the_distribution_function_to_120_bits(variance):
    """Against the definition, a difference of two Poisson variables, in exact fractions."""
    noise = IntegerNoise.skellam(variance)
    terms = 120
    weights = exact_poisson(Fraction(variance, 2), terms)
    reach = noise.bound
    at = {
        k: sum(weights[j] * weights[j + abs(k)] for j in range(terms - abs(k)))
        for k in range(-reach, reach + 1)
    }
    total = sum(at.values())
    below = Fraction(0)
    for k, threshold in zip(range(-reach, reach), noise._thresholds, strict=True):
        below += at[k]
        assert abs(Fraction(threshold, 1 << 128) - below / total) < Fraction(1, 1 << 118)


@pytest.mark.parametrize("variance", [1, 30, 40_000, 500_000])
def test_draws_fit_the_distribution(variance):
    noise = IntegerNoise.skellam(variance)
    draws = noise.draw(200_000, KEY)
    assert abs(draws).max() <= noise.bound
    edges = np.unique(np.round(stats.norm.ppf(np.linspace(0.01, 0.99, 40)) * variance**0.5))
    counted = np.histogram(draws, [-np.inf, *(edges + 0.5), np.inf])[0]
    cumulative = np.append(stats.skellam.cdf(edges, variance / 2, variance / 2), 1)
    expected = np.diff(cumulative, prepend=0) * len(draws)
    assert stats.chisquare(counted, expected).pvalue > 1e-4


@pytest.mark.parametrize("variance", [1, 2, 7])
def test_thresholds_of_discrete_gaussian_noise_are_its_distribution_function(variance):
    """Against rational sums of exp by its power series."""
    noise = IntegerNoise.discrete_gaussian(variance)
    at = {k: exact_exp(Fraction(-k * k, 2 * variance)) for k in range(noise.bound + 1)}
    total = at[0] + 2 * sum(at[k] for k in range(1, noise.bound + 1))
    below = Fraction(0)
    reach = range(-noise.bound, noise.bound)
    for k, threshold in zip(reach, noise._thresholds, strict=True):
        below += at[abs(k)]
        assert abs(Fraction(threshold, 1 << 128) - below / total) < Fraction(1, 1 << 118)


def exact_exp(x):
    """Return exp(x) for x <= 0 to 1e-50: halved until the series is short, then squared back."""
    halvings = max(0, math.ceil(math.log2(max(1, -x))))
    y, term, total = x / 2**halvings, Fraction(1), Fraction(1)
    for n in range(1, 60):
        term = term * y / n
        total += term
    scale = 10**80
    for _ in range(halvings):
        total = Fraction(int(total * total * scale), scale)
    return total


def rational_sampler(variance, draw):
    """Canonne, Kamath, Steinke 2020, Algorithms 1-3, in fractions: the oracle."""

    def bernoulli_exp(gamma):
        while gamma > 1:
            if not bernoulli_exp(Fraction(1)):
                return False
            gamma -= 1
        k = 1
        while int(draw.integers(gamma.denominator * k)) < gamma.numerator:
            k += 1
        return k % 2 == 1

    t = math.isqrt(variance) + 1
    while True:
        u = int(draw.integers(t))
        if not bernoulli_exp(Fraction(u, t)):
            continue
        v = 0
        while bernoulli_exp(Fraction(1)):
            v += 1
        y = u + t * v
        negative = draw.integers(2)
        if negative and y == 0:
            continue
        gamma = (y - Fraction(variance, t)) ** 2 / (2 * variance)
        if bernoulli_exp(gamma):
            return -y if negative else y


@pytest.mark.parametrize("variance", [1, 9, 100])
def test_discrete_gaussian_draws_agree_with_the_exact_rational_sampler(variance):
    source = np.random.default_rng(5)
    exact = np.array([rational_sampler(variance, source) for _ in range(20_000)])
    drawn = IntegerNoise.discrete_gaussian(variance).draw(200_000, KEY)
    reach = math.ceil(2.5 * variance**0.5)
    both = [np.unique(x.clip(-reach, reach), return_counts=True)[1] for x in (exact, drawn)]
    assert stats.chi2_contingency(both).pvalue > 1e-4


def test_the_sum_of_shares_is_noise_of_the_summed_variance():
    shares = [IntegerNoise.skellam(5).draw(100_000, bytes([c]) * 32) for c in range(6)]
    total = sum(shares)
    values, counted = np.unique(total.clip(-12, 12), return_counts=True)
    weights = stats.skellam.pmf(values, 15, 15)
    weights[0], weights[-1] = (stats.skellam.cdf(-12, 15, 15),) * 2
    assert stats.chisquare(counted, weights / weights.sum() * len(total)).pvalue > 1e-4


def test_every_word_of_the_key_decides_and_the_same_key_gives_the_same_noise():
    noise = IntegerNoise.skellam(100)
    first = noise.draw(64, KEY)
    assert (first == noise.draw(64, KEY)).all()
    for byte in range(0, 32, 5):
        other = bytearray(KEY)
        other[byte] ^= 1
        assert (first != noise.draw(64, bytes(other))).any()


@given(st.integers(0, 10_000))
def test_the_low_words_decide_ties(seed):
    """Where the first 64 bits are those of a threshold the last 64 say on which side it is."""
    noise = IntegerNoise.skellam(3)
    index = seed % len(noise._thresholds)
    threshold = noise._thresholds[index]
    for uniform, expected in ((threshold, index + 1), (max(0, threshold - 1), index)):
        words = np.array([[uniform >> 64], [uniform & (1 << 64) - 1]], dtype="<u8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "codream_secure.privacy.integer_noise.keystream",
                lambda _key, _size, words=words: words.view(np.uint8).ravel(),
            )
            assert noise.draw(1, KEY)[0] == expected - noise.bound


@pytest.mark.parametrize("variance", [0, -3])
def test_no_variance_is_no_noise_and_refused(variance):
    with pytest.raises(ValueError, match="positive integer"):
        IntegerNoise.skellam(variance)
    with pytest.raises(ValueError, match="positive integer"):
        IntegerNoise.discrete_gaussian(variance)


def test_a_short_key_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        IntegerNoise.skellam(3).draw(4, b"short")
