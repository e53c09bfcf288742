"""One loop over the rounds, and one life of a key batch, whoever carries the messages (SPEC 6).

The caller hands in a function `ask`. It sends messages to clients, waits for the answers, and gives
those that came in time. In memory, `protocols.driver` asks `ClientSession` objects; between
machines, `codream_secure.sites.sums` asks sites.

A batch of keys is made in an exchange of its own (`prepare`), or on the way of the last step of the
batch before (`step` with `renew`, SPEC 6.2). It ends when another batch takes its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from protocols.errors import LocalProtocolError, NotEnoughSurvivors, SecAggError
from protocols.graph import Clients
from protocols.key_batch import KeyBatch
from protocols.params import BatchParams, Task, Terms
from protocols.phases import OPEN_BUNDLES, Phase, Stage, phase_of
from protocols.primitives.keys import Entropy
from protocols.server.session import ServerSession
from protocols.server.step import Finished

Direction = Literal["up", "down"]
Tap = Callable[[Phase, Direction, int, bytes], None]
"""Is told of every message: its round, its direction, the client, the bytes."""


class Part(NamedTuple):
    """Messages of one stage of one batch, by client. The first stage of an exchange has b""."""

    batch: BatchParams
    stage: Stage
    messages: Mapping[int, bytes]


Ask = Callable[[Sequence[Part]], Sequence[Mapping[int, bytes]]]
"""One round trip: gives for every part the answers that came, by client.

Parts that are asked together share it: a BundleDelivery goes with a batch's first StepRequest, the
next exchange with a step's first and last round. A client that opened all bundles answers b"".
"""


class SumRounds:
    """The rounds of one session: key batches one after the other, and their steps.

    Numbers of batches and steps are never used twice.

    Args:
        terms: what all parties agreed on.
        tap: told of every message that was of use.
        fault: told of a client whose message was refused, and why. The others go on.
        present: returns the clients that are asked to advertise keys; None: the roster.
        expected: returns the clients for whose sake an exchange is tried again; None: the roster.
        ended: told of a batch that is given up; its clients erase it.
        wrong: told after a step of the clients whose shares were left out as wrong, if any.
        entropy: see `ServerSession`.
        first_batch: the number of the first batch, above all that the session has had (D6).
        note_batch: told the number after the one about to be used, before it is used. A server
            that stores it goes on from there after a restart.

    Attributes:
        round_trips: how often clients were waited for so far.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        tap: Tap,
        fault: Callable[[int, SecAggError], None],
        present: Callable[[], Collection[int]] | None = None,
        expected: Callable[[], Collection[int]] | None = None,
        ended: Callable[[BatchParams], None] = lambda _: None,
        wrong: Callable[[frozenset[int]], None] = lambda _: None,
        entropy: Entropy | None = None,
        first_batch: int = 0,
        note_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._terms, self._tap, self._fault = terms, tap, fault
        self._present = present or (lambda: terms.roster)
        self._expected = expected or (lambda: terms.roster)
        self._ended, self._wrong, self._note_batch = ended, wrong, note_batch
        self._entropy = entropy
        self._batches = first_batch
        self._keys: KeyBatch | None = None
        self._next: KeyBatch | None = None
        self._barred: set[int] | None = set() if terms.malicious else None  # for the session
        self.round_trips = 0

    @property
    def keys(self) -> KeyBatch:
        """The batch that steps take their keys from.

        Raises:
            LocalProtocolError: no keys are prepared.
        """
        if self._keys is None:
            raise LocalProtocolError("no keys are prepared")
        return self._keys

    @property
    def keys_left(self) -> int:
        """How many steps can still begin without another exchange."""
        return 0 if self._keys is None else self._keys.server.keys_left

    @property
    def candidates(self) -> Clients:
        """The clients that can be active in the next step, ascending; none without keys."""
        return () if self._keys is None else self._keys.server.candidates

    @property
    def needs_keys(self) -> bool:
        """Whether no keys are left, or one more lost client would stop the batch (SPEC 6.2)."""
        least = min(self._terms.threshold + 1, len(self._terms.roster))
        return self.keys_left == 0 or len(self.candidates) < least

    # Key batches -------------------------------------------------------------------------------

    def prepare(self, steps: int, attempts: Iterable[Ask]) -> None:
        """Make keys for the next steps. Those of the batch before are erased.

        An exchange that travelled with a step counts as an attempt that came first. The attempts
        end as soon as all expected clients have shared, and the best one is kept.

        Args:
            steps: M, how many steps.
            attempts: one function `ask` an attempt.

        Raises:
            NotEnoughSurvivors: every attempt fell below the threshold.
        """
        self._replace(self._next)
        failure: NotEnoughSurvivors | None = None
        for ask in attempts:
            expected = set(self._expected()) - (self._barred or set())
            if self._keys is not None and expected <= set(self.candidates):
                break
            keys = self._begin(steps, self._present())
            try:
                self._exchange(ask, keys)
            except NotEnoughSurvivors as error:
                failure = error
                self._ended(keys.batch)
                continue
            if self._keys is None or len(keys.server.candidates) > len(self.candidates):
                self._replace(keys)
            else:
                self._ended(keys.batch)
        if self._keys is None:
            raise failure or LocalProtocolError("no attempt to prepare keys")

    def replace(
        self, ask: Ask, steps: int, sharers: Collection[int], *, ahead: bool = False
    ) -> None:
        """Make keys in place of those that were lost with an earlier process.

        Args:
            ask: as everywhere.
            steps: M, how many steps were left.
            sharers: the clients that had these keys; nobody else takes part.
            ahead: whether it is the batch that the next `prepare` begins with.

        Raises:
            NotEnoughSurvivors: fewer than the threshold.
        """
        keys = self._begin(steps, sharers)
        self._exchange(ask, keys)
        if ahead:
            self._next = keys
        else:
            self._deliver(ask, keys)
            self._replace(keys)

    def _begin(self, steps: int, present: Iterable[int]) -> KeyBatch:
        """Begin a batch with a number that no batch of the session has had."""
        batch = self._terms.batch(self._batches, steps)
        self._note_batch(self._batches + 1)
        self._batches += 1
        rejoin = self._terms.rejoin if self._terms.malicious else None
        server = ServerSession(batch, rejoin=rejoin, barred=self._barred, entropy=self._entropy)
        asked = [u for u in present if self._barred is None or u not in self._barred]
        return KeyBatch(batch, server, asked)

    def _replace(self, keys: KeyBatch | None) -> None:
        if self._keys is not None:
            self._ended(self._keys.batch)
        if keys is self._next:
            self._next = None
        self._keys = keys

    def _exchange(self, ask: Ask, keys: KeyBatch) -> None:
        """Run what is left of an exchange, in round trips of its own."""
        while keys.stage is not None:
            (answers,) = self._round_trip(ask, [Part(keys.batch, keys.stage, keys.waiting)])
            self._advance(keys, answers)

    def _advance(self, keys: KeyBatch, answers: Mapping[int, bytes]) -> None:
        """End one stage of an exchange."""
        if keys.stage is not None:
            keys.next_stage(self._end_round(keys, keys.stage, answers))

    # Steps -------------------------------------------------------------------------------------

    def step(self, ask: Ask, task: Task, *, renew: int = 0) -> Finished:
        """Run the next step.

        Args:
            ask: as everywhere.
            task: what is summed, with a step number above all before.
            renew: M of the next batch, whose keys are made on the way, without a round trip of
                their own (ring: with one); 0 makes none. `prepare` begins with them.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
            RemoteProtocolError: a seed cannot be rebuilt or used; nothing was summed.
            LocalProtocolError: no keys are left.
        """
        keys = self.keys
        try:
            self._step(ask, keys, task, renew)
        except SecAggError:
            keys.server.abandon_step()
            raise
        result = keys.server.result
        if result.wrong:
            self._wrong(result.wrong)
        return result

    def _step(self, ask: Ask, keys: KeyBatch, task: Task, renew: int) -> None:
        self._deliver(ask, keys)
        requests = self._down(Phase.MASKED_INPUT, keys.server.begin_step(task))
        coming = self._begin(renew, self._present()) if renew else None
        try:
            shown = self._masked_input(ask, keys, requests, coming)
            if self._terms.malicious:
                (answers,) = self._round_trip(ask, [Part(keys.batch, Phase.CONSISTENCY, shown)])
                shown = self._end_round(keys, Phase.CONSISTENCY, answers)
            self._unmasking(ask, keys, shown, coming)
        finally:
            if coming is not None and coming is not self._next:
                self._ended(coming.batch)

    def _deliver(self, ask: Ask, keys: KeyBatch) -> None:
        """Malicious model: deliver bundles once in a round trip of their own.

        Colluders could otherwise damage bundles, and so make their recipients refuse the first
        step, which puts them out of the batch (SPEC 6.2).
        """
        if self._terms.malicious and not keys.delivered:
            keys.delivered = True
            part = Part(keys.batch, OPEN_BUNDLES, keys.deliveries)
            self._take_reports(keys, self._round_trip(ask, [part])[0])

    def _take_reports(self, keys: KeyBatch, reports: Mapping[int, bytes]) -> None:
        for client, report in reports.items():
            del keys.deliveries[client]
            if report:
                self._take(keys, OPEN_BUNDLES, client, report)

    def _masked_input(
        self, ask: Ask, keys: KeyBatch, requests: Mapping[int, bytes], coming: KeyBatch | None
    ) -> Mapping[int, bytes]:
        """Round 2, with bundles that are not delivered yet, and round 0 of the coming batch."""
        bundles = {u: keys.deliveries[u] for u in requests if u in keys.deliveries}
        parts = [
            Part(keys.batch, OPEN_BUNDLES, bundles),
            Part(keys.batch, Phase.MASKED_INPUT, requests),
        ]
        riding = self._riding(coming)
        reports, inputs, *rest = self._round_trip(ask, [*parts, *riding])
        self._take_reports(keys, reports)
        self._end_riding(coming, rest)
        return self._end_round(keys, Phase.MASKED_INPUT, inputs)

    def _unmasking(
        self, ask: Ask, keys: KeyBatch, shown: Mapping[int, bytes], coming: KeyBatch | None
    ) -> None:
        """Round 3, and the draw or round 1 of the coming batch."""
        riding = self._riding(coming)
        shares, *rest = self._round_trip(ask, [Part(keys.batch, Phase.UNMASKING, shown), *riding])
        self._end_riding(coming, rest)
        if coming is not None and coming.waiting:  # on the ring round 1 is left
            with contextlib.suppress(NotEnoughSurvivors):
                self._exchange(ask, coming)
        if coming is not None and coming.deliveries:
            self._next = coming
        self._end_round(keys, Phase.UNMASKING, shares)

    def _riding(self, coming: KeyBatch | None) -> list[Part]:
        """Return the coming exchange's messages that travel with this step; none if it failed."""
        if coming is None or coming.stage is None or not coming.waiting:
            return []
        return [Part(coming.batch, coming.stage, coming.waiting)]

    def _end_riding(self, coming: KeyBatch | None, answers: Sequence[Mapping[int, bytes]]) -> None:
        """End a stage that travelled with a step. If the stage fails, the step goes on."""
        if coming is not None and answers:
            try:
                self._advance(coming, answers[0])
            except NotEnoughSurvivors:
                coming.waiting = {}

    # Messages ----------------------------------------------------------------------------------

    def _round_trip(self, ask: Ask, parts: Sequence[Part]) -> Sequence[Mapping[int, bytes]]:
        self.round_trips += 1
        return ask(parts)

    def _end_round(
        self, keys: KeyBatch, phase: Phase, answers: Mapping[int, bytes]
    ) -> Mapping[int, bytes]:
        for client, data in answers.items():
            self._take(keys, phase, client, data)
        return self._down(phase, keys.server.end_round())

    def _take(self, keys: KeyBatch, stage: Stage, client: int, data: bytes) -> None:
        try:
            due = keys.server.receive(client, data)
        except SecAggError as error:
            self._fault(client, error)
            return
        if due:
            self._tap(phase_of(stage), "up", client, data)

    def _down(self, phase: Phase, replies: Mapping[int, bytes]) -> Mapping[int, bytes]:
        for client in replies:
            self._tap(phase, "down", client, replies[client])
        return replies
