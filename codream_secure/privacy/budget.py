"""A privacy budget that is charged before anything is released."""

from codream_secure.errors import UserError


class BudgetExhausted(Exception):  # noqa: N818 - the state that the caller meets
    """One more private step would exceed the number that the noise was computed for."""


class PrivacyBudget:
    """Counts one client's private steps against the total that its noise was computed for.

    A step is charged before anything is computed from data, and stays charged whatever happens
    to it afterwards.

    Args:
        total_steps: T, public and independent of the client's data.

    Raises:
        UserError: T is negative.

    Guarantee:
        `charge` returns at most T times, also when steps abort in between.
    """

    def __init__(self, total_steps: int) -> None:
        if total_steps < 0:
            raise UserError(f"a budget cannot have {total_steps} steps")
        self.total_steps = total_steps
        self.steps_taken = 0

    def charge(self) -> None:
        """Charge one step.

        Raises:
            BudgetExhausted: all steps are spent; nothing was charged.
        """
        if self.steps_taken >= self.total_steps:
            raise BudgetExhausted(f"all {self.total_steps} private steps are spent")
        self.steps_taken += 1
