"""Sums with noise: what one unit changes, whose noise is there, and what it costs."""

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codream_secure.config.rules import resolve
from codream_secure.data.spec import InputSpec
from codream_secure.errors import RequestRefused, UserError
from codream_secure.models.build import build_model
from codream_secure.privacy.accounting import EXAMPLES, cost
from codream_secure.privacy.integer_gradients import GradientGrid, gradient_sum
from codream_secure.privacy.integer_noise import MOST_VARIANCE
from codream_secure.privacy.noisy_sum import NoisySum, noisy_terms
from codream_secure.privacy.release_plan import Released, ReleasePlan

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


# Gradients ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(allow_nan=True, width=32), min_size=9, max_size=9), st.integers(0, 6))
def test_one_example_moves_the_gradient_sum_by_at_most_the_bound(numbers, others):
    grid = GradientGrid(9, 0.5)
    draw = torch.Generator().manual_seed(others)
    rest = torch.randn((others, 9), generator=draw)
    added = torch.cat([rest, torch.tensor([numbers], dtype=torch.float32)])
    moved = grid.sum([added[:, :4], added[:, 4:].reshape(-1, 5, 1)]) - grid.sum([rest])
    assert (moved**2).sum() <= grid.l2**2


def test_the_integer_sum_is_the_sum_of_clipped_gradients():
    model = build_model("mlp", InputSpec(1, 8, 8, 10), width=8, norm="group", seed=0)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn((150, 1, 8, 8), generator=draw), torch.arange(150) % 10
    grid = GradientGrid(sum(p.numel() for p in model.parameters()), 0.5)
    found = gradient_sum(model, x, y, grid) / grid.scale
    expected = 0
    for image, label in zip(x, y, strict=True):
        loss = torch.nn.functional.cross_entropy(model(image[None]), label[None])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
        expected = expected + gradient * min(1.0, 0.5 / float(gradient.norm()))
    assert not any(
        hasattr(p, "grad_sample") and p.grad_sample is not None for p in model.parameters()
    )
    # Truncation takes less than one integer an example.
    assert np.abs(found - expected.numpy()).max() < 150 / grid.scale
    error = np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected)
    assert error < 0.1


# How often, and what it costs --------------------------------------------------------------------


def plan(tiny, most=5, **options):
    config = resolve(tiny(dp_eps=2.0, models="mlp", **options))
    kind = Released(
        name="sums", unit="example", adjacency=EXAMPLES, length=64, l2=128, clip=1.0, largest=5000
    )
    return ReleasePlan(config, kind, most)


@pytest.mark.parametrize("noise", KINDS)
def test_all_sums_over_the_fewest_survivors_cost_the_budget_and_no_more(tiny, noise):
    made = plan(tiny, clients=6, dp_noise=noise)
    for _ in range(5):
        assert made.reserve()
    assert not made.reserve()
    assert 1.95 < made.guarantee().epsilon <= 2.0


def test_more_survivors_mean_more_noise_and_less_epsilon(tiny):
    made, all_stay = plan(tiny, clients=6), plan(tiny, clients=6)
    for survivors in (6, 5, 6):
        made.reserve()
        made.released(survivors)
        all_stay.reserve()
    # Six stay and one may collude: five shares, where a threshold of five had planned for four.
    shares = {r.steps: r.mechanism.variance / made.terms.variance for r in made.releases()}
    assert shares == {1: 4, 2: 5}
    assert made.guarantee().epsilon < all_stay.guarantee().epsilon


def test_after_an_interruption_everything_counts_with_the_least_noise(tiny):
    made = plan(tiny, clients=6)
    told = []
    made.journal = told.append
    made.reserve()
    made.released(6)
    assert told == [1]
    again = plan(tiny, clients=6)
    again.restore(3)
    assert [r.steps for r in again.releases()] == [3]
    assert again.guarantee().epsilon > made.guarantee().epsilon
    with pytest.raises(ValueError, match="6 of 5"):
        again.restore(6)


def test_a_client_answers_its_own_terms_and_no_more_often_than_planned(tiny):
    side = plan(tiny, most=2).share(0)
    asked = noisy_terms(side.terms)
    for name in ("length", "l2", "variance", "cap", "maximum"):
        wrong = msgspec.structs.replace(asked, **{name: getattr(asked, name) - 1})
        with pytest.raises(RequestRefused, match="terms"):
            side.take(wrong)
    side.take(asked)
    side.take(asked)
    with pytest.raises(RequestRefused, match="all 2 noisy sums"):
        side.take(asked)
    assert "key" not in repr(side)


def test_the_same_request_gets_the_same_bytes_and_another_other_noise(tiny):
    side = plan(tiny).share(0)
    vector = np.zeros(64, np.int64)
    first = side.codes(vector, 3, b"asked")
    assert (first == side.codes(vector, 3, b"asked")).all()
    for other in (side.codes(vector, 4, b"asked"), side.codes(vector, 3, b"else")):
        assert (first != other).mean() > 0.9
    assert (first != plan(tiny).share(1).codes(vector, 3, b"asked")).mean() > 0.9


def test_with_another_noise_the_budget_is_kept_too(tiny):
    made = plan(tiny, clients=6, dp_noise="gaussian", noise_colluders=3)
    alone = dataclasses.replace(made.terms, variance=made.terms.variance // 2)
    made.reserve()
    full = made.releases()[0]
    halved = msgspec.structs.replace(full, mechanism=alone.mechanism(2))
    assert cost([halved], 1e-5).epsilon > 1.3 * cost([full], 1e-5).epsilon


def test_nobodys_noise_is_refused(tiny):
    with pytest.raises(UserError, match="--noise-colluders must be below the threshold"):
        plan(tiny, noise_colluders=3)
