"""What is audited: this package, or your own code in place of some of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from protocols.audit.lying import ClientFactory
from protocols.client.durable import DurableClient
from protocols.client.step import Inputs
from protocols.driver import AggregationResult, run_aggregation
from protocols.params import AggregationParams
from protocols.phases import DropSchedule
from protocols.primitives.keys import Entropy
from protocols.rounds import Tap
from protocols.signing import Credentials


class Aggregate(Protocol):
    """Runs one aggregation, with arguments and errors of `protocols.driver.run_aggregation`."""

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
        """Run one aggregation."""
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What is audited: this package, or your own code in place of some of its parts.

    Args:
        aggregate: runs one aggregation in memory.
        client: makes a client from its party, its entropy and its stored record.
    """

    aggregate: Aggregate = run_aggregation
    client: ClientFactory = DurableClient
