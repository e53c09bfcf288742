"""One batch of keys and how far its exchange has come (SPEC 6.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from protocols.params import BatchParams
from protocols.phases import Phase, round_phases
from protocols.server.session import ServerSession


class KeyBatch:
    """The server's side of one batch: its session, and what its clients are to be sent next.

    Args:
        batch: public parameters.
        server: a new session.
        present: clients that are asked to advertise keys.

    Attributes:
        waiting: messages of the next stage of the exchange, by client.
        deliveries: bundles that were not delivered yet; they go with the batch's first step.
        delivered: whether they had a round trip of their own; only the malicious model has one.
    """

    def __init__(self, batch: BatchParams, server: ServerSession, present: Iterable[int]) -> None:
        self.batch = batch
        self.server = server
        self.waiting: Mapping[int, bytes] = dict.fromkeys(present, b"")
        self.deliveries: dict[int, bytes] = {}
        self.delivered = False
        stages = round_phases(batch.threat_model, ring=batch.ring is not None)
        self._left = list(stages[: stages.index(Phase.MASKED_INPUT)])

    @property
    def stage(self) -> Phase | None:
        """The next stage of the exchange; None when it is over."""
        return self._left[0] if self._left else None

    def next_stage(self, replies: Mapping[int, bytes]) -> None:
        """Go on to the next stage, in which clients are sent these replies."""
        self._left.pop(0)
        self.waiting = dict(replies)
        if not self._left:
            self.waiting, self.deliveries = {}, dict(replies)
