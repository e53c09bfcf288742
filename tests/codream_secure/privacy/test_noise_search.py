"""The noise that is found fits the budget and wastes little of it."""

import math

import pytest
from releases import DELTA, skellam, skellam_variance

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import dpsgd_epsilon, privacy_cost, training
from codream_secure.privacy.noise_search import noise_multiplier_for


@pytest.mark.parametrize("q", [1.0, 0.5, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_noise_meets_the_budget_and_wastes_less_than_one_percent(q, epsilon):
    sigma = noise_multiplier_for(epsilon, DELTA, q, 40)
    assert 0.99 * epsilon < dpsgd_epsilon(sigma, q, 40, DELTA) <= epsilon


@pytest.mark.parametrize("q", [1.0, pytest.param(0.01, marks=pytest.mark.slow)])
@pytest.mark.parametrize("epsilon", [0.05, 0.9, 8.0])
def test_noise_is_neither_too_little_nor_wasted(epsilon, q):
    """A coarse grid once made the noise for a small epsilon several times too large."""
    sigma = noise_multiplier_for(epsilon, DELTA, q, 300)
    assert dpsgd_epsilon(sigma, q, 300, DELTA) <= epsilon
    assert dpsgd_epsilon(sigma / 1.01, q, 300, DELTA) > epsilon


def test_a_single_gaussian_release_agrees_with_the_analytic_mechanism():
    # Balle and Wang (ICML 2018): 0.6002 at epsilon 8, 3.731 at epsilon 1.
    assert noise_multiplier_for(8.0, DELTA, 1.0, 1) == pytest.approx(0.6002, rel=2e-3)
    assert noise_multiplier_for(1.0, DELTA, 1.0, 1) == pytest.approx(3.731, rel=2e-3)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_fine_skellam_noise_costs_what_gaussian_noise_does(epsilon):
    """Agarwal, Kairouz, Liu 2021: as the grid gets finer the two agree; RDP against RDP."""
    l2 = 1000.0
    total = skellam_variance(epsilon, l2, l2 * 30)
    gaussian = privacy_cost([training(math.sqrt(total) / l2, 1.0, 1)], DELTA).rdp
    assert privacy_cost([skellam(l2, l2 * 30, total)], DELTA).epsilon == pytest.approx(
        gaussian, rel=2e-3
    )
    assert 0.99 * epsilon < gaussian <= epsilon * 1.001


def test_more_steps_or_less_epsilon_need_more_noise():
    assert noise_multiplier_for(8.0, DELTA, 0.5, 20) < noise_multiplier_for(8.0, DELTA, 0.5, 40)
    assert noise_multiplier_for(8.0, DELTA, 0.5, 20) < noise_multiplier_for(4.0, DELTA, 0.5, 20)


def test_noise_computed_for_one_round_would_overspend_over_three():
    """A known trap: calibrating each round from zero."""
    a_round, total = 20, 60
    naive = noise_multiplier_for(8.0, DELTA, 0.5, a_round)
    assert dpsgd_epsilon(naive, 0.5, total, DELTA) > 12
    right = noise_multiplier_for(8.0, DELTA, 0.5, total)
    assert dpsgd_epsilon(right, 0.5, total, DELTA) <= 8


@pytest.mark.slow
def test_rounds_accounted_together_are_one_run():
    """Three rounds of 20 with the noise of 60 end at the budget, not at three times it."""
    sigma = noise_multiplier_for(8.0, DELTA, 0.5, 60)
    by_round = [dpsgd_epsilon(sigma, 0.5, 20 * r, DELTA) for r in (1, 2, 3)]
    assert by_round == sorted(by_round)
    assert by_round[-1] <= 8.0
    assert sum(dpsgd_epsilon(sigma, 0.5, 20, DELTA) for _ in range(3)) > 8.0


@pytest.mark.parametrize(("epsilon", "part"), [(1.0, 0.85), (2.0, 1.7), (8.0, 2.0)])
@pytest.mark.parametrize("q", [1.0, pytest.param(0.4, marks=pytest.mark.slow)])
def test_training_fits_beside_other_releases(epsilon, part, q):
    other = skellam(129, 1040, skellam_variance(part, 129, 1040))
    noise = noise_multiplier_for(epsilon, DELTA, q, 40, (other,))
    assert 0.985 * epsilon < privacy_cost([training(noise, q, 40), other], DELTA).epsilon <= epsilon
    assert noise > noise_multiplier_for(epsilon, DELTA, q, 40)


def test_what_leaves_nothing_for_training_is_refused():
    other = skellam(129, 1040, skellam_variance(1.0, 129, 1040))
    with pytest.raises(UserError, match="leaves nothing for training"):
        noise_multiplier_for(0.9, DELTA, 1.0, 40, (other,))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_a_meaningless_epsilon_is_refused(epsilon):
    with pytest.raises(UserError, match="epsilon"):
        noise_multiplier_for(epsilon, DELTA, 1.0, 1)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_a_meaningless_delta_is_refused(delta):
    with pytest.raises(UserError, match="delta"):
        noise_multiplier_for(8.0, delta, 1.0, 1)


def test_the_search_is_computed_once():
    noise_multiplier_for(8.0, DELTA, 1.0, 37)
    hits = noise_multiplier_for.cache_info().hits
    noise_multiplier_for(8.0, DELTA, 1.0, 37)
    assert noise_multiplier_for.cache_info().hits == hits + 1


@pytest.mark.parametrize("q", [0.0, 1.1, -0.5, math.nan])
def test_a_sampling_rate_that_means_nothing_is_refused(q):
    with pytest.raises(UserError, match="sampling rate"):
        dpsgd_epsilon(1.0, q, 1, DELTA)
    with pytest.raises(UserError, match="sampling rate"):
        noise_multiplier_for(8.0, DELTA, q, 1)


@pytest.mark.parametrize("steps", [0, -3])
def test_noise_for_no_steps_is_refused_and_not_searched_for_ever(steps):
    with pytest.raises(UserError, match="at least 1 private step"):
        noise_multiplier_for(8.0, DELTA, 1.0, steps)


def test_an_epsilon_that_protects_nobody_is_refused_before_it_takes_all_memory():
    with pytest.raises(UserError, match="at most 1000"):
        noise_multiplier_for(1e6, DELTA, 1.0, 1)
