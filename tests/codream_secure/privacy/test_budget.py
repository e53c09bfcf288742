"""The counter of private releases never counts more than were planned."""

import pytest

from codream_secure.errors import UserError
from codream_secure.privacy.budget import BudgetExhausted, PrivacyBudget


def test_a_budget_refuses_the_step_after_the_last():
    budget = PrivacyBudget(2)
    budget.charge()
    budget.charge()
    with pytest.raises(BudgetExhausted):
        budget.charge()
    assert budget.charged == 2


def test_an_empty_budget_allows_nothing():
    with pytest.raises(BudgetExhausted):
        PrivacyBudget(0).charge()


def test_a_negative_budget_is_refused():
    with pytest.raises(UserError, match="steps"):
        PrivacyBudget(-1)


def test_what_is_left_is_reserved_and_no_more():
    budget = PrivacyBudget(5)
    assert [budget.reserve(2) for _ in range(4)] == [2, 2, 1, 0]
    assert budget.charged == 5


def test_the_journal_is_told_before_releases_are_counted():
    budget, told = PrivacyBudget(5), []
    budget.journal = lambda charged: told.append((charged, budget.charged))
    budget.reserve(2)
    budget.charge()
    assert told == [(2, 0), (3, 2)]

    def crash(_):
        raise OSError("disk full")

    budget.journal = crash
    with pytest.raises(OSError, match="disk full"):
        budget.charge()
    assert budget.charged == 3


@pytest.mark.parametrize("charged", [-1, 6])
def test_an_impossible_record_is_refused(charged):
    budget = PrivacyBudget(5)
    with pytest.raises(ValueError, match="of 5 private releases"):
        budget.restore(charged)
    budget.restore(5)
    assert budget.reserve() == 0
