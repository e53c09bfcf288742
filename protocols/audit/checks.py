"""What properties are made of: counted checks and their outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocols.errors import SecAggError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How much a property checked before it was found to hold.

    Attributes:
        examples: cases that were run.
        checks: conditions that were checked in them.
    """

    examples: int
    checks: int


class PropertyFailed(AssertionError):  # noqa: N818 - an outcome of an audit, named as one
    """A checked condition does not hold."""


class Checks:
    """Counts checked conditions, and fails at the first one that does not hold.

    The count shows that a property has checked something: a search may draw no fitting case.
    """

    def __init__(self) -> None:
        self.made = 0

    def that(self, holds: object, failure: str) -> None:
        """Check a condition.

        Raises:
            PropertyFailed: it does not hold.
        """
        self.made += 1
        if not holds:
            raise PropertyFailed(failure)

    def refused(
        self,
        what: str,
        errors: type[SecAggError] | tuple[type[SecAggError], ...],
        call: Callable[..., object],
        *arguments: object,
        saying: str = "",
    ) -> None:
        """Check that a call raises one of these errors, with `saying` in its text.

        Raises:
            PropertyFailed: it returns, or raises something else.
        """
        try:
            call(*arguments)
        except SecAggError as error:
            expected = isinstance(error, errors) and saying in str(error)
            self.that(expected, f"{what}: refused with {type(error).__name__}: {error}")
            return
        except Exception as error:  # a peer's bytes must never cause an untyped error (SPEC 6.6)
            self.made += 1
            raise PropertyFailed(f"{what}: {type(error).__name__} came out") from error
        self.that(holds=False, failure=f"{what}: accepted")
