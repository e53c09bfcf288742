"""Noisy sums of a run: how many there are, whose noise is there, and what they cost."""

import dataclasses

import msgspec
import numpy as np
import pytest

from codream_secure.config.rules import resolve
from codream_secure.errors import RequestRefused, UserError
from codream_secure.privacy.accounting import EXAMPLES, privacy_cost
from codream_secure.privacy.noisy_sum import noisy_terms
from codream_secure.privacy.release_plan import Released, ReleasePlan

KINDS = ["skellam", "gaussian"]


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
    shares = {r.steps: r.mechanism.shares for r in made.releases()}
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
    assert privacy_cost([halved], 1e-5).epsilon > 1.3 * privacy_cost([full], 1e-5).epsilon


def test_nobodys_noise_is_refused(tiny):
    with pytest.raises(UserError, match="--noise-colluders must be below the threshold"):
        plan(tiny, noise_colluders=3)
