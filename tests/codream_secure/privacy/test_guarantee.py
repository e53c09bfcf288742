"""What releases cost a group of units."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from releases import DELTA, skellam

from codream_secure.privacy.accounting import privacy_cost, training
from codream_secure.privacy.guarantee import group_epsilon


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
    # The grid of integer noise is as coarse for the group as for one, and relatively finer.
    expected = privacy_cost(scaled, DELTA).epsilon
    assert 0.99 * expected < found <= expected
    assert group_epsilon(releases, DELTA, 1) == privacy_cost(releases, DELTA).epsilon


def test_a_group_for_which_no_delta_is_small_enough_has_no_epsilon():
    releases = [training(0.7, 0.5, 40)]
    assert math.isfinite(group_epsilon(releases, DELTA, 2))
    assert math.isinf(group_epsilon(releases, DELTA, 5))


@settings(max_examples=8, deadline=None)
@given(st.floats(20, 200), st.integers(2, 5))
def test_a_group_costs_at_least_its_size_times_one(noise, size):
    releases = [training(noise, 0.5, 40), skellam(10, 80, (noise * 4) ** 2)]
    assert group_epsilon(releases, DELTA, size) >= size * privacy_cost(releases, DELTA).rdp
