"""Replay protection: one answer to each request, across restarts of the client (SPEC 6.7).

Inputs are not reproducible (rounding, noise), and two answers to one request under the same masks
would reveal their difference. So the owner of the client stores every answer before it sends it,
together with the state that follows: write a temporary file, fsync, rename, fsync the folder, then
send. Each record replaces the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from protocols import context, messages
from protocols.client.session import ClientSession
from protocols.client.states import (
    Advertised,
    Drawn,
    Ended,
    Failed,
    Party,
    Prepared,
    Secret,
    Shared,
    Start,
    State,
)
from protocols.client.step import Compute, Inputs
from protocols.errors import LocalProtocolError, RemoteProtocolError, SecAggError
from protocols.messages import StepRequest
from protocols.params import Task
from protocols.phases import OPEN_BUNDLES, Phase, Stage, phase_of
from protocols.primitives.keys import Entropy

_State = Start | Advertised | Drawn | Shared | Prepared | Failed | Ended


class Answered(Secret, frozen=True):
    """A request, by its digest, and the reply. An empty reply means that none is sent."""

    request: bytes
    reply: bytes


class Record(Secret, frozen=True):
    """Everything that a client needs after a restart, and everything it must not forget."""

    off0: bytes
    client: int
    state: _State
    answers: dict[str, Answered]


class Reply(NamedTuple):
    """The result of a call. The owner must store `record` before it sends `message`."""

    record: bytes
    message: bytes

    def __repr__(self) -> str:
        return f"Reply({len(self.record)} bytes to store, {len(self.message)} to send)"


class DurableClient:
    """A client that answers every request once, whatever happens to its process.

    The same request again gets the same bytes. Another request for a stage that was answered is
    refused for ever and does not disturb the running step. The owner must lock its folder: two
    clients made from one record, or one made from an older record, break the protection.

    Args:
        party: who takes part, in which batch, under which conditions.
        entropy: as for `ClientSession`.
        record: the record stored last, after a restart.

    Raises:
        LocalProtocolError: the record is damaged, or of another client or batch.
        PolicyError: see `ClientSession`.
    """

    def __init__(self, party: Party, entropy: Entropy, record: bytes | None = None) -> None:
        self._party = party
        loaded = Record(party.off0, party.client, Start(), {}) if record is None else _load(record)
        if (loaded.off0, loaded.client) != (party.off0, party.client):
            raise LocalProtocolError("the record is of another client or batch")
        self._answers = dict(loaded.answers)
        self._session = ClientSession.resume(party, loaded.state, entropy)

    def __repr__(self) -> str:
        return f"DurableClient({self._session!r})"

    @property
    def state(self) -> State:
        """The whole state, secrets included."""
        return self._session.state

    def advertise_keys(self) -> Reply:
        """Round 0; see `ClientSession.advertise_keys`."""
        return self._once(Phase.ADVERTISE_KEYS, b"", self._session.advertise_keys)

    def draw_graph(self, commitments: bytes) -> Reply:
        """Draw, ring only; see `ClientSession.draw_graph`."""
        return self._answer(Phase.DRAW_GRAPH, commitments)

    def share_keys(self, directory: bytes) -> Reply:
        """Round 1; see `ClientSession.share_keys`."""
        return self._answer(Phase.SHARE_KEYS, directory)

    def open_bundles(self, delivery: bytes) -> Reply:
        """After round 1; see `ClientSession.open_bundles`. An empty message is not sent."""
        return self._answer(OPEN_BUNDLES, delivery)

    def masked_input(
        self, request: bytes, task: Task, inputs: Inputs | Compute, *, above: int = -1
    ) -> Reply:
        """Round 2; see `ClientSession.masked_input`. A repeated request ignores the inputs."""
        asked = context.online(request, 0, task, self._party.batch.n, b"")
        key = messages.decode(request, StepRequest, self._party.batch).key
        session, before = self._session, self._answers
        if self._is_unspent(key):
            # A new step erases the answers of the last one. The answer to the delivery stays: the
            # delivery may have come again with this request (SPEC 6.2).
            self._answers = {s: a for s, a in before.items() if s == OPEN_BUNDLES}
        try:
            return self._once(
                Phase.MASKED_INPUT,
                asked,
                lambda: session.masked_input(request, task, inputs, above=above),
            )
        except SecAggError:
            self._answers = before
            raise

    def confirm(self, survivors: bytes) -> Reply:
        """Consistency round; see `ClientSession.confirm`."""
        return self._answer(Phase.CONSISTENCY, survivors)

    def unmask(self, data: bytes) -> Reply:
        """Round 3; see `ClientSession.unmask`."""
        return self._answer(Phase.UNMASKING, data)

    def end(self) -> bytes:
        """Give up the batch. The record to store holds no secret any more."""
        self._session.end()
        self._answers = {}
        return self._record()

    def _answer(self, stage: Stage, data: bytes) -> Reply:
        return self._once(stage, data, lambda: self._session.answer(stage, data))

    def _once(self, stage: Stage, request: bytes, answer: Callable[[], bytes]) -> Reply:
        digest = hashlib.sha256(request).digest()
        stored = self._answers.get(stage)
        if stored is None:
            self._session.check_due(stage)
            stored = Answered(digest, answer())
            self._answers[stage] = stored
        elif stored.request != digest:
            raise RemoteProtocolError(None, phase_of(stage), "another request was answered")
        return Reply(self._record(), stored.reply)

    def _is_unspent(self, key: int) -> bool:
        state = self._session.state
        return isinstance(state, Prepared) and key in state.unused

    def _record(self) -> bytes:
        state = self._session.state
        if not isinstance(state, _State):
            raise LocalProtocolError("state cannot be stored")
        return msgspec.msgpack.encode(
            Record(self._party.off0, self._party.client, state, self._answers)
        )


def last_step(record: bytes) -> int:
    """Return the last step that was answered in the batch of a record; -1 if none was.

    Raises:
        LocalProtocolError: the record is damaged.
    """
    state = _load(record).state
    return state.last_step if isinstance(state, Prepared) else -1


def _load(record: bytes) -> Record:
    try:
        return msgspec.msgpack.decode(record, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LocalProtocolError(
            "the record is damaged, or of another version: its batch is lost"
        ) from None
