"""Where arguments of the accounting are out of range, or its grids matter."""

import math

import pytest

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import check_accountant, epsilon_spent, noise_multiplier_for
from codream_secure.privacy.budget import BudgetExhausted, PrivacyBudget

DELTA = 1e-5


@pytest.mark.parametrize(
    ("sigma", "q", "steps", "pld"),
    [
        (1.1, 0.00427, 14062, 2.382),
        (0.7, 0.0040, 11250, 5.431),
        (20.0, 1.0, 2000, 11.480),
    ],
)
def test_long_runs_match_figures_computed_elsewhere(sigma, q, steps, pld):
    assert epsilon_spent(sigma, q, steps, DELTA) == pytest.approx(pld, abs=0.05)


@pytest.mark.parametrize("q", [1.0, 0.01])
@pytest.mark.parametrize("epsilon", [0.05, 0.9, 8.0])
def test_noise_is_neither_too_little_nor_wasted(epsilon, q):
    """A coarse grid once made the noise for a small epsilon several times too large."""
    sigma = noise_multiplier_for(epsilon, DELTA, q, 300)
    assert epsilon_spent(sigma, q, 300, DELTA) <= epsilon
    assert epsilon_spent(sigma / 1.01, q, 300, DELTA) > epsilon


def test_rounds_accounted_together_are_one_run():
    """Three rounds of 20 with the noise of 60 end at the budget, not at three times it."""
    sigma = noise_multiplier_for(8.0, DELTA, 0.5, 60)
    by_round = [epsilon_spent(sigma, 0.5, 20 * r, DELTA) for r in (1, 2, 3)]
    assert by_round == sorted(by_round)
    assert by_round[-1] <= 8.0
    assert sum(epsilon_spent(sigma, 0.5, 20, DELTA) for _ in range(3)) > 8.0


def test_full_batches_cost_the_same_merged_or_step_by_step():
    """At q = 1 the accounting merges all steps into one Gaussian; q just below 1 does not."""
    merged = epsilon_spent(3.8, 1.0, 40, DELTA)
    composed = epsilon_spent(3.8, 1 - 1e-9, 40, DELTA)
    assert merged == pytest.approx(composed, abs=0.02)


def test_the_search_is_computed_once():
    noise_multiplier_for(8.0, DELTA, 1.0, 37)
    hits = noise_multiplier_for.cache_info().hits
    noise_multiplier_for(8.0, DELTA, 1.0, 37)
    assert noise_multiplier_for.cache_info().hits == hits + 1


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_noise_that_means_nothing_is_refused(sigma):
    with pytest.raises(UserError, match="noise multiplier"):
        epsilon_spent(sigma, 1.0, 1, DELTA)


@pytest.mark.parametrize("q", [0.0, 1.1, -0.5, math.nan])
def test_a_sampling_rate_that_means_nothing_is_refused(q):
    with pytest.raises(UserError, match="sampling rate"):
        epsilon_spent(1.0, q, 1, DELTA)
    with pytest.raises(UserError, match="sampling rate"):
        noise_multiplier_for(8.0, DELTA, q, 1)


@pytest.mark.parametrize("steps", [0, -3])
def test_noise_for_no_steps_is_refused_and_not_searched_for_ever(steps):
    with pytest.raises(UserError, match="at least 1 private step"):
        noise_multiplier_for(8.0, DELTA, 1.0, steps)


def test_impossible_numbers_of_steps_are_refused():
    with pytest.raises(UserError, match="steps"):
        epsilon_spent(1.0, 1.0, -1, DELTA)
    with pytest.raises(UserError, match="steps"):
        PrivacyBudget(-1)


def test_an_epsilon_that_protects_nobody_is_refused_before_it_takes_all_memory():
    with pytest.raises(UserError, match="at most 1000"):
        noise_multiplier_for(1e6, DELTA, 1.0, 1)


def test_an_empty_budget_allows_nothing():
    with pytest.raises(BudgetExhausted):
        PrivacyBudget(0).charge()


def test_gdp_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"under-reports by up to 12 %"):
        check_accountant("gdp")
