"""Bounds of epsilon are those of the theorems, and below the truth."""

import numpy as np
import pytest
from scipy import stats

from codream_secure.audit.bounds import clopper_pearson, family_epsilon, one_run_epsilon
from codream_secure.privacy.accounting import privacy_cost, training


@pytest.mark.parametrize(("hits", "trials"), [(0, 50), (3, 50), (50, 50)])
def test_the_interval_of_a_rate_is_scipys(hits, trials):
    expected = stats.binomtest(hits, trials).proportion_ci(0.999, "exact")
    assert clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_the_family_bound_is_below_the_truth_and_comes_near_it(rate):
    draw = np.random.default_rng(3)
    without = 1.2 * draw.standard_normal(40_000)
    with_it = 1.2 * draw.standard_normal(40_000) + (draw.random(40_000) < rate)
    truth = privacy_cost([training(1.2, rate, 1)], 1e-5).epsilon
    found = family_epsilon(without, with_it, 1e-5, sampling_rate=rate)
    print(found, truth)
    assert 0.4 * truth < found <= truth


def test_one_run_bounds_are_those_of_the_theorem():
    # All of k guesses right bound epsilon by ln(p / (1 - p)), p = 0.05^(1 / k).
    p = 0.05 ** (1 / 300)
    assert one_run_epsilon(300, 300, 300, 0.0) == pytest.approx(np.log(p / (1 - p)), abs=1e-3)
    assert one_run_epsilon(100, 50, 300, 1e-5) == 0
    assert 0.2 < one_run_epsilon(100, 66, 300, 0.0) < 0.4
    assert one_run_epsilon(100, 66, 300, 1e-2) < one_run_epsilon(100, 66, 300, 0.0)
