"""Aggregation with the pairwise masks of `protocols`: the server learns only the sum."""

import contextlib
import os
from collections.abc import Mapping, Sequence

from codream_secure.aggregation.aggregator import (
    DREAMING,
    Aggregator,
    AnsweringClient,
    Call,
    FieldSum,
    Inputs,
    Meters,
)
from codream_secure.aggregation.byte_ledger import Direction
from codream_secure.aggregation.requests import Asked
from codream_secure.aggregation.settings import AggregationSettings, colluders
from codream_secure.config.early import check_masked
from protocols.driver import BatchSession
from protocols.errors import NotEnoughSurvivors
from protocols.phases import DropSchedule, Phase
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey
from protocols.rounds import Tap
from protocols.signing import Credentials


class SecureAggregator(Aggregator):
    """Sums masked inputs with the protocol of `protocols`; keys are made ahead in batches.

    The operating system's generator gives the randomness of keys and masks. In the malicious
    model every client has a signing key and a policy, and signs its messages.

    Args:
        clients: by id.
        settings: roster, threshold, threat model, dropouts.
        meters: where bytes and seconds are recorded.
        session: 32 public bytes, new for every run.
        kinds: malicious model: the kinds of requests that clients answer.
        tap: called with every encoded protocol message.

    Raises:
        UserError: fewer than three clients.
    """

    def __init__(
        self,
        clients: Mapping[int, AnsweringClient],
        settings: AggregationSettings,
        meters: Meters,
        *,
        session: bytes,
        kinds: frozenset[str] = DREAMING,
        tap: Tap | None = None,
    ) -> None:
        super().__init__(clients, settings, meters)
        check_masked(len(settings.roster))
        self._tap = tap
        self._request: Asked | None = None
        self._advertised: dict[int, int] = {}
        self._session = BatchSession(
            session,
            settings.roster,
            settings.needed,
            tap=self._carried,
            credentials=_trust(settings, kinds),
            ring=settings.graph.ring,
            chosen=settings.graph.chosen,
        )

    @property
    def _round_trips(self) -> int:
        return self._session.round_trips

    def _renew_lost_keys(self) -> None:
        attendance = self._attendance
        if not attendance.needs_keys:
            self._session.replace(attendance.keys_left, attendance.members)
        elif attendance.prepared:
            steps = self._settings.batch_steps(self._step)
            self._session.replace(steps, attendance.prepared, ahead=True)

    def _make_keys(self, call: Call, steps: int, attempts: Sequence[DropSchedule]) -> None:
        self._request = call.request
        self._session.prepare(steps, attempts)

    def _aggregate(self, call: Call, inputs: Inputs, drops: DropSchedule, renew: int) -> FieldSum:
        self._request, self.verified = call.request, set()
        task = call.task
        try:
            result = self._session.step(inputs, task, drops, renew=renew)
        finally:
            # Attendance follows aborted steps too, and then repeats the error of the protocol.
            with contextlib.suppress(NotEnoughSurvivors):
                self._attendance.finish_step(drops, renews=bool(renew))
        return FieldSum(result.totals, len(result.survivors), task.sections)

    def _carried(self, phase: Phase, direction: Direction, client: int, message: bytes) -> None:
        self._count(phase, direction, client, len(message), self._request)
        self._note_own_entry(phase, direction, client, len(message))
        if phase is Phase.UNMASKING and direction == "up":
            # Its session gives shares only for a survivor set that it has checked.
            self.verified.add(client)
        if self._tap is not None:
            self._tap(phase, direction, client, message)

    def _note_own_entry(self, phase: Phase, direction: Direction, client: int, size: int) -> None:
        """Count as avoidable that the key directory returns a client's own advertisement.

        Directories of sparse graphs do not.
        """
        if phase is not Phase.ADVERTISE_KEYS or self.graph.sparse is not None:
            return
        if direction == "up":
            self._advertised[client] = size
        else:
            known = min(size, self._advertised.get(client, 0))
            self._meters.ledger.count_avoidable("own entry in the key directory", "down", known)


def _trust(settings: AggregationSettings, kinds: frozenset[str]) -> Credentials | None:
    """Return signing keys, known to all from the start, and the clients' policy."""
    if settings.threat_model != "malicious":
        return None
    keys = {c: SigningKey.from_private_bytes(os.urandom(32)) for c in settings.roster}
    policy = Policy(
        min_clients=settings.needed,
        colluders=colluders(settings),
        max_steps=settings.key_steps,
        kinds=kinds,
        rejoin=settings.rejoin,
    )
    return Credentials(keys, policy)
