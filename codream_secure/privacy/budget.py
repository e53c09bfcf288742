"""The counter of private releases: it is charged before anything is computed from data."""

from collections.abc import Callable

from codream_secure.errors import UserError


class BudgetExhausted(Exception):  # noqa: N818 - the state that the caller meets
    """One more release would exceed the number that the noise was computed for."""


class PrivacyBudget:
    """Counts private releases against the number that their noise was computed for.

    A release is a private training step or a noisy sum. It stays charged whatever happens to it
    after it was charged: an aborted release may already have been seen.

    Args:
        total: releases in the whole run, at least 0; public and independent of private data.

    Raises:
        UserError: ``total`` is negative.

    Guarantee:
        At most ``total`` releases are charged in one process. With a ``journal`` that outlives a
        crash, and `restore` from it, this holds over all processes of a run.

    Attributes:
        total: as the argument.
        charged: releases so far, in all processes of the run.
        journal: receives the new ``charged`` before a release is counted; what it stores must
            outlive a crash.
    """

    def __init__(self, total: int) -> None:
        if total < 0:
            raise UserError(f"a budget cannot have {total} steps")
        self.total = total
        self.charged = 0
        self.journal: Callable[[int], None] = lambda _: None

    def charge(self) -> None:
        """Charge one release.

        Raises:
            BudgetExhausted: all releases are spent; nothing was charged.
        """
        if not self.reserve():
            raise BudgetExhausted(f"all {self.total} private steps are spent")

    def reserve(self, wanted: int = 1) -> int:
        """Charge up to ``wanted`` releases and return how many were left to charge."""
        allowed = min(wanted, self.total - self.charged)
        if allowed:
            # The record comes first: a crash in between wastes releases but never repeats one.
            self.journal(self.charged + allowed)
            self.charged += allowed
        return allowed

    def restore(self, charged: int) -> None:
        """Count ``charged`` releases as made, as the journal of an earlier process says.

        Raises:
            ValueError: ``charged`` is negative or above ``total``.
        """
        if not 0 <= charged <= self.total:
            raise ValueError(f"{charged} of {self.total} private releases charged")
        self.charged = charged
