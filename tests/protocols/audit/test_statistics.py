"""The statistics pass uniform values and alarm at others."""

import numpy as np
import pytest

from protocols.audit import statistics
from protocols.errors import (
    ConfigError,
)


@pytest.mark.parametrize("p", [5, 13, 31, 61])
def test_uniform_values_pass(p):
    values = np.random.default_rng(0).integers(0, p, 45_000)
    assert min(statistics.uniform(values, p).values()) > 1e-4


@pytest.mark.parametrize(
    ("test", "spoil"),
    [
        ("chi-square", lambda v, p: np.where(np.arange(v.size) % 50, v, 0)),
        ("chi-square", lambda v, p: np.where(v == p - 1, 0, v)),  # the off-by-one of w1
        ("bit 3", lambda v, p: np.where(np.arange(v.size) % 20, v, 8)),
        ("complexity", lambda v, p: np.tile(v[:10_000], 5)[: v.size]),
    ],
)
def test_values_that_are_not_uniform_do_not_pass(test, spoil):
    values = np.random.default_rng(0).integers(0, 13, 45_000)
    assert statistics.uniform(spoil(values, 13), 13)[test] < statistics.ALARM


def test_the_chi_square_bound_is_one_of_the_tail():
    """Against the exact tail for 2 degrees of freedom, exp(-x/2)."""
    counts = np.array([4000, 4000, 4300])
    values = np.repeat(np.arange(3), counts)
    expected = values.size / 3
    statistic = ((counts - expected) ** 2 / expected).sum()
    bound = statistics.chi_square(values, 3)
    assert np.exp(-statistic / 2) < bound < 30 * np.exp(-statistic / 2)
    assert statistics.chi_square(np.arange(300) % 3, 3) == 1.0


@pytest.mark.parametrize("values", [np.zeros(299, int), np.full(300, 3), np.full(300, -1)])
def test_chi_square_refuses_what_it_cannot_judge(values):
    with pytest.raises(ConfigError):
        statistics.chi_square(values, 3)


@pytest.mark.parametrize(
    ("bits", "length"),
    [
        ([0] * 9, 0),
        ([0] * 8 + [1], 9),
        ([1] * 9, 1),
        ([1, 0] * 9, 2),
        ([1, 0, 0, 1, 0, 1, 1] * 4, 3),
    ],
)
def test_linear_complexity_of_known_sequences(bits, length):
    assert statistics.linear_complexity(np.array(bits)) == length
