"""Noisy sums under one budget: what they cost, and what a client refuses whatever a server says."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, get_epsilon_gaussian

from codream_secure.aggregation.requests import NoisyTerms
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import RequestRefused
from codream_secure.privacy.accounting import EXAMPLES, epsilon_of
from codream_secure.privacy.noisy_sum import NoisySum, noisy_terms
from codream_secure.privacy.release_plan import Released
from codream_secure.privacy.sum_filter import SumFilter, most_signal, signal_of, variance_for
from codream_secure.privacy.sum_plan import Part, SumPlan

DELTA = 1e-5


def kind(name="gradients", length=16):
    l2 = math.ceil(16 * math.sqrt(length))
    return Released(
        name=name,
        unit="example",
        adjacency=EXAMPLES,
        length=length,
        l2=l2,
        clip=0.5,
        largest=4 * 139 * l2,
    )


def plan_of(epsilon, parts=None, **options):
    config = resolve(Config.from_options({"clients": 10, "dp_eps": epsilon, "seed": 1, **options}))
    return SumPlan(config, parts or [Part(released=kind(), sums=40, share=1.0)])


def _worst(terms):
    return signal_of(terms.mechanism(6))


def spend(plan, survivors=lambda _: 10):
    """Make all sums; return the terms of each."""
    made = []
    while (terms := plan.next_terms()) is not None:
        made.append(terms)
        plan.released(survivors(len(made)))
    return made


@pytest.mark.parametrize("epsilon", [0.5, 1, 2, 4, 8])
def test_less_than_a_hundredth_is_left_over_if_all_stay(epsilon):
    parts = [
        Part(released=kind("means", 4), sums=1, share=0.05),
        Part(released=kind("moments", 9), sums=1, share=0.05),
        Part(released=kind(), sums=40, share=0.9),
    ]
    for chosen in ([Part(released=kind(), sums=40, share=1.0)], parts):
        plan = plan_of(epsilon, chosen)
        spend(plan)
        assert plan.charged == plan.total
        assert 0.99 * epsilon < plan.epsilon() <= epsilon


@pytest.mark.parametrize("fewest", [7, 8])
def test_dropouts_never_exceed_the_budget_and_later_sums_adapt(fewest):
    plan = plan_of(2.0)
    draw = np.random.default_rng(fewest)
    made = spend(plan, lambda _: int(draw.integers(fewest, 11)))
    assert plan.epsilon() <= 2.0
    assert len(made) == 40
    worst = plan_of(2.0)
    spend(worst, lambda _: 7)
    assert 0.97 * 2 < worst.epsilon() <= 2.0


def test_a_sum_that_came_to_no_end_counts_with_the_least_noise():
    plan = plan_of(2.0)
    for _ in range(20):
        assert plan.next_terms() is not None
    assert plan.filter.left >= 0
    (release,) = {r.mechanism.shares for r in plan.releases()}
    assert release == 6
    spend(plan)
    assert plan.epsilon() <= 2.0


def test_a_restored_plan_has_no_more_budget_than_the_one_that_was_lost():
    plan = plan_of(2.0)
    for index in range(10):
        plan.next_terms()
        plan.released(10 if index % 2 else 8)
    stored = plan.state()
    for _ in range(5):  # after the checkpoint
        plan.next_terms()
        plan.released(7)
    again = plan_of(2.0)
    side = again.side(0)
    again.restore_sums(stored, plan.charged)
    assert again.charged == 15
    assert again.filter.left <= plan.filter.left
    assert side.filter.left == again.filter.left
    spend(again)
    assert again.epsilon() <= 2.0
    for bad in (([(9, 100, 9)], 1), (stored, 3), (stored, 99)):
        with pytest.raises(ValueError, match=r"sums"):
            plan_of(2.0).restore_sums(*bad)


def test_the_signal_of_a_budget_is_its_epsilon():
    for epsilon in (0.01, 1.0, 8.0, 500.0):
        signal = most_signal(epsilon, DELTA)
        assert epsilon_of([GaussianDpEvent(signal**-0.5)], DELTA) <= epsilon
        assert get_epsilon_gaussian(signal**-0.5, DELTA) > 0.999 * epsilon
    for shares in (1, 6, 9):
        found = variance_for(0.07, 1110, shares)
        at = NoisySum.of(length=9, l2=1110, variance=found, largest=9, clients=10, noise="gaussian")
        assert 0.99 * 0.07 < signal_of(at.mechanism(shares)) <= 0.07


def test_a_filter_counts_what_was_begun_and_refuses_what_does_not_fit():
    account = SumFilter(1.0)
    account.begin(0.6)
    assert account.left == pytest.approx(0.4)
    with pytest.raises(ValueError, match="budget"):
        account.begin(0.5)
    account.end(0.2)
    account.begin(0.8)
    account.begin(0.0)  # the one before never ended: it keeps all that it may have had
    assert account.spent == pytest.approx(1.0)
    assert account.left == pytest.approx(0.0)


class TestOwnSums:
    """A client's account counts survivors that its own session verified."""

    def test_it_follows_the_plan_as_long_as_it_verifies(self):
        plan = plan_of(2.0)
        side = plan.side(3)
        while (terms := plan.next_terms()) is not None:
            side.take("gradients", noisy_terms(terms))
            codes = side.codes(np.zeros(terms.length, np.int64), plan.charged, b"x" * 32)
            assert codes.max() <= terms.maximum
            plan.released(10)
            side.verified(10)
        assert side.filter.left == pytest.approx(plan.filter.left)

    def test_a_server_that_makes_survivors_up_is_refused_in_time(self):
        plan = plan_of(2.0)
        side = plan.side(3)
        taken = 0
        while (terms := plan.next_terms()) is not None:
            if not side.filter.fits(_worst(terms)):
                break
            side.take("gradients", noisy_terms(terms))
            taken += 1
            plan.released(10)  # the client verifies nothing
        with pytest.raises(RequestRefused, match="less noise"):
            side.take("gradients", noisy_terms(terms))
        assert 20 < taken < 40
        assert side.filter.spent + side.filter.open <= side.filter.limit

    @pytest.mark.parametrize(
        "changed",
        [
            {"variance": 9},
            {"length": 17},
            {"l2": 1},
            {"cap": 10**6},
            {"maximum": 1},
            {"noise": "skellam"},
        ],
    )
    def test_other_terms_are_refused(self, changed):
        plan = plan_of(2.0)
        side = plan.side(3)
        terms = noisy_terms(plan.next_terms())
        asked = NoisyTerms(**{f: getattr(terms, f) for f in terms.__struct_fields__} | changed)
        for name, what in (("gradients", asked), ("another", terms)):
            with pytest.raises(RequestRefused):
                side.take(name, what)
        assert side.filter.open == 0
        side.take("gradients", terms)

    def test_more_noise_than_needed_is_fine(self):
        plan = plan_of(2.0)
        side = plan.side(3)
        terms = plan.next_terms()
        side.take(
            "gradients",
            noisy_terms(
                NoisySum.of(
                    length=terms.length,
                    l2=terms.l2,
                    variance=4 * terms.variance,
                    largest=kind().largest,
                    clients=10,
                    noise="gaussian",
                )
            ),
        )


def test_colluders_tell_their_noise_and_it_does_not_count():
    few, many = plan_of(2.0, noise_colluders=0), plan_of(2.0, noise_colluders=3)
    assert many.next_terms().variance > few.next_terms().variance


def test_a_guarantee_tells_what_colluders_cost():
    plan = plan_of(2.0)
    spend(plan)
    found = plan.guarantee()
    assert list(found.colluding) == list(range(7))
    assert found.colluding[1] == pytest.approx(found.epsilon)
    assert list(found.colluding.values()) == sorted(found.colluding.values())
    # As if those who tell had sent no noise at all: 10 - 6 shares are left.
    noise = [(r.steps, 4 * r.mechanism.variance - 4, r.mechanism.l2) for r in found.releases]
    signal = sum(steps * l2**2 / variance for steps, variance, l2 in noise)
    assert found.colluding[6] == pytest.approx(get_epsilon_gaussian(signal**-0.5, DELTA))
