"""What a property is made of: counted checks, and the thing they are made about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from protocols.audit.lying import ClientFactory
from protocols.client.durable import DurableClient
from protocols.client.step import Inputs
from protocols.driver import AggregationResult, run_aggregation
from protocols.errors import SecAggError
from protocols.params import AggregationParams
from protocols.phases import DropSchedule
from protocols.primitives.keys import Entropy
from protocols.rounds import Credentials, Tap


class Aggregate(Protocol):
    """A whole aggregation, with the arguments and errors of `protocols.driver.run_aggregation`."""

    def __call__(
        self,
        inputs: Mapping[int, Inputs],
        params: AggregationParams,
        *,
        drops: DropSchedule = ...,
        entropy: Entropy | None = ...,
        tap: Tap | None = ...,
        credentials: Credentials | None = ...,
    ) -> AggregationResult:
        """Run it."""
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What is audited: this package, but for the parts that are replaced.

    Args:
        aggregate: runs one aggregation in memory.
        client: makes a client from its party, its entropy and its stored record.
    """

    aggregate: Aggregate = run_aggregation
    client: ClientFactory = DurableClient


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a property that held has done.

    Attributes:
        examples: cases that were run.
        checks: conditions that were checked in them.
    """

    examples: int
    checks: int


class PropertyFailed(AssertionError):  # noqa: N818 - an outcome of an audit, named as one
    """A checked condition does not hold."""


class Checks:
    """Counts what is checked, and fails at the first condition that does not hold."""

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
        """Check that a call raises one of these errors, saying this.

        Raises:
            PropertyFailed: it returns, or raises something else.
        """
        try:
            call(*arguments)
        except SecAggError as error:
            expected = isinstance(error, errors) and saying in str(error)
            self.that(expected, f"{what}: refused with {type(error).__name__}: {error}")
            return
        except Exception as error:
            self.made += 1
            raise PropertyFailed(f"{what}: {type(error).__name__} came out") from error
        self.that(holds=False, failure=f"{what}: accepted")
