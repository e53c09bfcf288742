"""Releases compose to what dp_accounting and figures measured elsewhere say they cost."""

import math
import subprocess
import sys

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from dp_accounting.rdp import RdpAccountant
from releases import DELTA, skellam

from codream_secure.errors import UserError
from codream_secure.privacy.accounting import (
    Release,
    dpsgd_epsilon,
    epsilon_of,
    privacy_cost,
    training,
)
from codream_secure.privacy.mechanisms import SampledGaussian, dpsgd_event

# (sampling rate, noise multiplier, steps, epsilon by PLD, epsilon by RDP): computed with
# dp_accounting 0.6.0 outside this project.
KNOWN = [
    (0.356, 2.08, 90, 8.608, 9.388),
    (0.01, 1.0, 1000, 1.828, 2.101),
    (0.1, 2.0, 500, 5.555, 6.035),
    (1, 10, 40, 2.594, 2.814),
    (1, 3.8, 40, 7.990, 8.589),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("q", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("noise", [pytest.param(0.7, marks=pytest.mark.slow), 2.0, 8.0])
@pytest.mark.parametrize("steps", [1, 60])
def test_the_bound_by_rdp_is_never_below_that_by_pld(q, noise, steps):
    found = privacy_cost([training(noise, q, steps)], DELTA)
    assert found.rdp >= found.epsilon
    assert found.epsilon == min(found.rdp, dpsgd_epsilon(noise, q, steps, DELTA))


def test_a_missing_share_of_noise_costs_more():
    full, less = (
        privacy_cost([skellam(100, 900, shares * 5000)], DELTA).epsilon for shares in (6, 5)
    )
    assert less > full
    assert math.isinf(privacy_cost([skellam(100, 900, 0)], DELTA).epsilon)


def test_nothing_released_costs_nothing_and_units_do_not_mix():
    assert privacy_cost([training(1.0, 1.0, 0)], DELTA).epsilon == 0
    of_clients = Release(
        name="c", unit="client", adjacency="", mechanism=SampledGaussian(1.0), steps=1
    )
    with pytest.raises(ValueError, match="units"):
        privacy_cost([training(1.0, 1.0, 1), of_clients], DELTA)


@pytest.mark.parametrize(("q", "sigma", "steps", "pld", "rdp"), KNOWN)
def test_epsilon_matches_known_figures(q, sigma, steps, pld, rdp):
    assert dpsgd_epsilon(sigma, q, steps, DELTA) == pytest.approx(pld, abs=0.02)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("q", "sigma", "steps", "pld", "rdp"), KNOWN)
def test_rdp_never_reports_less_than_pld(q, sigma, steps, pld, rdp):
    accountant = RdpAccountant()
    accountant.compose(dpsgd_event(sigma, q, steps))
    by_rdp = accountant.get_epsilon(DELTA)
    assert by_rdp == pytest.approx(rdp, abs=0.05)
    assert by_rdp >= dpsgd_epsilon(sigma, q, steps, DELTA)


def test_no_step_costs_nothing():
    assert dpsgd_epsilon(1.0, 1.0, 0, DELTA) == 0


def test_accounting_needs_neither_torch_nor_opacus():
    code = (
        "import sys, codream_secure.privacy.accounting\n"
        "print({'torch', 'opacus'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("noises", [(3.0,), (1.0, 2.5), (20.0, 20.0, 7.0)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_full_batches_are_accounted_for_in_closed_form_as_on_a_grid(noises, delta):
    events = [dp_event.GaussianDpEvent(noise) for noise in noises]
    grid = PLDAccountant(value_discretization_interval=1e-4)
    for event in events:
        grid.compose(event)
    found = epsilon_of(events, delta)
    assert found == pytest.approx(grid.get_epsilon(delta), rel=1e-5)
    # At the epsilon that is claimed delta is not above the one that was asked for.
    sigma = 1 / np.sqrt(sum(noise**-2 for noise in noises))
    assert GaussianPrivacyLoss(sigma).get_delta_for_epsilon(found) <= delta * (1 + 1e-12)


def test_hardly_any_noise_is_no_protection():
    assert dpsgd_epsilon(1e-200, 1.0, 1, 1e-5) == math.inf


@pytest.mark.parametrize(
    ("sigma", "q", "steps", "pld"),
    [
        (1.1, 0.00427, 14062, 2.382),
        (0.7, 0.0040, 11250, 5.431),
        (20.0, 1.0, 2000, 11.480),
    ],
)
def test_long_runs_match_figures_computed_elsewhere(sigma, q, steps, pld):
    assert dpsgd_epsilon(sigma, q, steps, DELTA) == pytest.approx(pld, abs=0.05)


def test_full_batches_cost_the_same_merged_or_step_by_step():
    """At q = 1 the accounting merges all steps into one Gaussian; q just below 1 does not."""
    merged = dpsgd_epsilon(3.8, 1.0, 40, DELTA)
    composed = dpsgd_epsilon(3.8, 1 - 1e-9, 40, DELTA)
    assert merged == pytest.approx(composed, abs=0.02)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_noise_that_means_nothing_is_refused(sigma):
    with pytest.raises(UserError, match="noise multiplier"):
        dpsgd_epsilon(sigma, 1.0, 1, DELTA)


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(UserError, match="steps"):
        dpsgd_epsilon(1.0, 1.0, -1, DELTA)
