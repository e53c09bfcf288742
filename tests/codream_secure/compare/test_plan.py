"""The plan of a comparison: who gets which settings, and when a budget is spent."""

import itertools
import math
from types import SimpleNamespace

import msgspec
import pytest

from codream_secure.baselines.base import BaselineSettings
from codream_secure.compare.plan import MAX_ROUNDS, Budget, Plan, as_match, cost_of
from codream_secure.config.methods import parse_method
from codream_secure.errors import UserError
from codream_secure.runs.comparison_format import PlanRecord


def plan(*methods, seeds=(0,), **options):
    return Plan(methods=methods, seeds=seeds, options=options, settings=BaselineSettings())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"methods": ()}, "--methods"),
        ({"methods": ("fedavg", "fedavg")}, "--methods"),
        ({"methods": ("nothing",)}, "nothing"),
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"options": {"latent": 8}}, "--latent means nothing to any of codream"),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_run_is_refused(wrong, told):
    right = {"methods": ("codream",), "seeds": (0,), "options": {}, "settings": BaselineSettings()}
    with pytest.raises(UserError, match=told):
        Plan(**{**right, **wrong})


def test_a_setting_of_one_method_does_not_reach_the_others():
    made = plan("codream", "codream-fast", latent=8, clients=4)
    fast, pixels = (made.config(parse_method(n), 3) for n in ("codream-fast", "codream"))
    assert fast.dream.latent == 8
    assert (fast.dream.method, pixels.dream.method) == ("codream-fast", "codream")
    assert pixels.dream.latent == plan("codream").config(parse_method("codream"), 3).dream.latent
    assert fast.run.seed == pixels.run.seed == 3


def test_the_first_method_that_dreams_sets_the_budget():
    assert plan("fedavg", "codream-fast", "codream").reference == "codream-fast"
    assert plan("fedavg", "moon").reference == "fedavg"


def test_a_plan_is_recorded_as_it_is():
    made = plan("codream", "fedavg-secure", seeds=(0, 4), clients=5)
    record = made.record()
    assert (record.methods, record.seeds) == (("codream", "fedavg-secure"), (0, 4))
    assert record.options == {"clients": 5}
    assert msgspec.json.decode(msgspec.json.encode(record), type=PlanRecord) == record


class Run:
    """A run whose rounds cost what a list says."""

    def __init__(self, costs):
        self.costs, self.done = costs, 0
        self.observer = SimpleNamespace(history=[])
        self.budget_spent = None

    @property
    def iterations(self):
        return sum(itertools.islice(self.costs, self.done))

    def rounds(self):
        for number, _ in enumerate(self.costs, 1):
            self.done = number
            self.observer.history.append(number)
            yield number


@pytest.mark.parametrize(
    ("costs", "amount", "rounds"),
    [
        ([10] * 9, 50, 5),
        ([10] * 9, 49.5, 5),  # 1 % more than the budget is within the slack of 2 %
        ([10] * 9, 48, 4),
        ([10] * 9, 5, 1),  # one round is always run
        ([30, 10, 10, 10], 50, 1),  # a round is expected to cost what the last one did
        ([20, 10, 10, 10], 50, 4),
        ([1, 2, 4, 8, 16], 9, 3),
    ],
)
def test_rounds_are_run_as_long_as_the_next_one_fits(costs, amount, rounds):
    run = Run(costs)
    assert len(list(Budget("iterations", amount).limited(run))) == rounds
    assert run.iterations == sum(costs[:rounds])


def test_a_schedule_is_told_what_share_of_the_budget_is_spent():
    run, told = Run([10] * 9), []
    for _ in Budget("iterations", 40).limited(run):
        told.append(run.budget_spent)
    assert told == [0, 0.25, 0.5, 0.75]


def test_a_method_that_costs_nothing_ends_too():
    run = Run([0] * (MAX_ROUNDS + 5))
    assert len(list(Budget("iterations", math.inf).limited(run))) == MAX_ROUNDS


def test_who_sends_nothing_gets_the_iterations_in_place_of_bytes():
    costs = {"rounds": 3, "iterations": 70, "seconds": 5, "bytes": 1000}
    assert cost_of("bytes", costs, parse_method("fedavg")) == Budget("bytes", 1000)
    for silent in ("independent", "centralized"):
        assert cost_of("bytes", costs, parse_method(silent)) == Budget("iterations", 70)
        assert cost_of("rounds", costs, parse_method(silent)) == Budget("rounds", 3)


def test_every_word_for_a_cost_has_its_match():
    assert [as_match(w) for w in ("rounds", "iterations", "seconds", "bytes")] == [
        *("rounds", "iterations", "seconds", "bytes")
    ]
