"""Noisy sums are exact except for the noise of the survivors, and fit 32 bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codream_secure.errors import UserError
from codream_secure.privacy.integer_noise import MOST_VARIANCE
from codream_secure.privacy.noisy_sum import NoisySum

KINDS = ["skellam", "gaussian"]


def terms(noise="skellam", **changed):
    asked = {"length": 4096, "l2": 50, "variance": 400, "largest": 3000, "clients": 6}
    return NoisySum.of(noise=noise, **(asked | changed))


@pytest.mark.parametrize("noise", KINDS)
@pytest.mark.parametrize("survivors", [3, 4, 5, 6])
def test_the_sum_is_exact_but_for_the_noise_of_the_survivors(noise, survivors):
    chosen = terms(noise)
    vectors = np.random.default_rng(1).integers(-3000, 3001, (survivors, chosen.length))
    codes = [chosen.codes(v, bytes([c]) * 32) for c, v in enumerate(vectors)]
    assert max(code.max() for code in codes) <= chosen.maximum
    total = np.sum(codes, axis=0, dtype=np.uint64).astype(np.uint32)
    noise_there = chosen.decode(total, survivors) - vectors.sum(axis=0)
    spread = noise_there.var() / (survivors * chosen.variance)
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], chosen.length - 1) / (chosen.length - 1)
    assert low < spread < high


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 1 << 40), st.integers(3, 500))
def test_the_sum_of_everybody_fits_32_bits_whatever_is_asked(l2, largest, clients):
    chosen = terms(l2=l2, variance=l2 * l2, largest=largest, clients=clients)
    assert clients * chosen.maximum < 1 << 32
    assert 1 <= chosen.cap <= largest


def test_noise_that_no_sum_can_hold_is_refused_before_its_table_is_built():
    with pytest.raises(UserError, match="ask for more epsilon"):
        terms(l2=1 << 20, variance=MOST_VARIANCE + 1)
    with pytest.raises(UserError, match="noise of 100000 clients does not fit 32 bits"):
        terms(variance=1 << 22, clients=100_000)
