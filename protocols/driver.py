"""Whole aggregations and batches in memory: the executable form of SPEC 6."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocols.client.session import ClientSession
from protocols.client.step import Inputs
from protocols.errors import LocalProtocolError, NotEnoughSurvivors, SecAggError
from protocols.params import AggregationParams, BatchParams, Ring, Task
from protocols.phases import Phase
from protocols.primitives.keys import Entropy, SigningKey
from protocols.rounds import Credentials, Direction, Tap
from protocols.server.session import ServerSession

Answer = Callable[[int], bytes]
ByteCounts = dict[Phase, dict[Direction, dict[int, int]]]


@dataclass(frozen=True, slots=True)
class DropSchedule:
    """Client -> the phase whose message it no longer sends; nothing comes from it afterwards.

    A phase that the run does not have stands for the next one.
    """

    drops: Mapping[int, Phase] = field(default_factory=dict)

    def silent(self, client: int, phase: Phase) -> bool:
        """Whether the client has fallen silent by this phase."""
        phases = list(Phase)
        return client in self.drops and phases.index(self.drops[client]) <= phases.index(phase)

    def beside(self) -> DropSchedule:
        """The same silence for offline messages that travel with a step's (SPEC 6.2).

        Keys travel with masked inputs, nonces or bundles with the answers of the last round.
        """
        keys, rest = Phase.ADVERTISE_KEYS, Phase.DRAW_GRAPH
        missed = {u: keys if self.silent(u, Phase.MASKED_INPUT) else rest for u in self.drops}
        return DropSchedule(missed)


@dataclass(frozen=True, slots=True)
class AggregationResult:
    """What the server knows at the end, and what it cost.

    Attributes:
        totals: section name -> uint32, shape (length,), the exact integer sum.
        survivors: clients whose inputs are in it, ascending.
        bytes: phase -> "up" or "down" -> client -> bytes of encoded messages.
    """

    totals: dict[str, NDArray[np.uint32]]
    survivors: tuple[int, ...]
    bytes: ByteCounts


def run_aggregation(
    inputs: Mapping[int, Inputs],
    params: AggregationParams,
    *,
    drops: DropSchedule = DropSchedule(),
    entropy: Entropy | None = None,
    tap: Tap | None = None,
    credentials: Credentials | None = None,
) -> AggregationResult:
    """Run one aggregation between real sessions over real bytes: a batch of one step (SPEC 6).

    Args:
        inputs: client -> section name -> unsigned integers of shape (length,), below 2^bits;
            not needed of clients that drop at or before the masked input.
        params: agreed by all parties.
        drops: who falls silent, and when.
        entropy: source of all secrets; None asks the operating system.
        tap: called with every message sent, also in an aggregation that then fails.
        credentials: the clients' signing keys and policy, in the malicious model.

    Raises:
        NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        LocalProtocolError: an input is missing or does not fit.
    """
    wire = _Wire(tap)
    parties = _Parties(params.batch, entropy or os.urandom, wire, credentials)
    parties.exchange_keys(drops)
    return parties.run_step(inputs, params.task, drops)


class BatchSession:
    """Steps of one training session, their keys made ahead in batches (SPEC 6.1 to 6.4).

    `prepare` makes keys for the next steps; each `step` then takes two round trips. The owner
    prepares again when `needs_keys` says so, or lets the messages of the next exchange travel with
    a step's (`renew`). Numbers of batches and steps are never used twice.

    Args:
        session: 32 bytes, unique to the training session.
        roster: client ids, strictly ascending.
        threshold: clients that must answer every round.
        entropy: source of all secrets; None asks the operating system.
        tap: called with every message sent.
        credentials: the clients' signing keys and policy; with it, the malicious model is run.
        ring: the k-regular graph, drawn anew for every batch (`graph.ring_parameters` with the M
            of the longest one); None is the complete graph. A ConfigError in the malicious model.
    """

    def __init__(
        self,
        session: bytes,
        roster: tuple[int, ...],
        threshold: int,
        *,
        entropy: Entropy | None = None,
        tap: Tap | None = None,
        credentials: Credentials | None = None,
        ring: Ring | None = None,
    ) -> None:
        self._session = session
        self._roster = roster
        self._threshold = threshold
        self._entropy = entropy or os.urandom
        self._wire = _Wire(tap)
        self._credentials = credentials
        self._ring = ring
        self._batches = 0
        self._answered = dict.fromkeys(roster, -1)
        self._parties: _Parties | None = None
        self._next: _Parties | None = None

    @property
    def keys_left(self) -> int:
        """How many steps can still begin without another exchange."""
        return 0 if self._parties is None else self._parties.server.keys_left

    @property
    def candidates(self) -> tuple[int, ...]:
        """Who can be active in the next step, ascending; nobody if no keys are prepared."""
        return () if self._parties is None else self._parties.server.candidates

    @property
    def needs_keys(self) -> bool:
        """No keys are left, or so few clients hold shares that one more loss stops the batch."""
        return self.keys_left == 0 or len(self.candidates) < min(
            self._threshold + 1, len(self._roster)
        )

    @property
    def round_trips(self) -> int:
        """How many times the server has waited for clients so far, in all batches."""
        return self._wire.round_trips

    def prepare(self, steps: int, attempts: Iterable[DropSchedule] = (DropSchedule(),)) -> None:
        """Make keys for the next steps; those of the batch before are erased.

        An exchange that travelled with a step (`renew`) counts as an attempt that came first.

        Args:
            steps: M, how many steps.
            attempts: who falls silent in the first attempt, the second, … Each has a batch number
                of its own; they end as soon as everybody shared, and the best one is kept.

        Raises:
            NotEnoughSurvivors: every attempt fell below the threshold.
        """
        self._end()
        self._parties, self._next = self._next, None
        failure: NotEnoughSurvivors | None = None
        for drops in attempts:
            if self.candidates == self._roster:
                break
            parties = self._fresh(steps)
            try:
                parties.exchange_keys(drops)
            except NotEnoughSurvivors as error:
                failure = error
                continue
            self._keep_better(parties)
        if self._parties is None:
            raise failure or LocalProtocolError("no attempt to prepare keys")

    def replace(self, steps: int, sharers: Collection[int], *, ahead: bool = False) -> None:
        """Make keys for those alone that held keys which are lost with an earlier process.

        An exchange of its own (SPEC 6.1, 6.2), in which everybody else is silent.

        Args:
            steps: M, how many steps were left.
            sharers: who could be active in them.
            ahead: whether it is the batch that the next `prepare` begins with.

        Raises:
            NotEnoughSurvivors: fewer than the threshold.
        """
        others = {u: Phase.ADVERTISE_KEYS for u in self._roster if u not in sharers}
        parties = self._fresh(steps)
        parties.exchange_keys(DropSchedule(others))
        if ahead:
            self._next = parties
        else:
            self._end()
            self._parties = parties

    def step(
        self,
        inputs: Mapping[int, Inputs],
        task: Task,
        drops: DropSchedule = DropSchedule(),
        *,
        renew: int = 0,
    ) -> AggregationResult:
        """Run the next step; who missed the one before is back only if it may be (SPEC 8.1).

        Args:
            inputs: as in `run_aggregation`.
            task: what is summed, with a step number above all before.
            drops: who falls silent in this step. Who drops in an offline round is silent all
                through the step.
            renew: M of the next batch, whose keys are made on the way, without a round trip of
                their own; 0 makes none. `prepare` begins with them.

        Returns:
            The sum; its bytes include those of the offline exchange since the last result.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
            LocalProtocolError: no keys are left, or an input is missing or does not fit.
        """
        if self._parties is None:
            raise LocalProtocolError("no keys are prepared")
        if not renew:
            return self._parties.run_step(inputs, task, drops)
        beside = _Beside(self._fresh(renew), drops.beside())
        try:
            return self._parties.run_step(inputs, task, drops, beside)
        finally:
            self._next = beside.prepared

    def _fresh(self, steps: int) -> _Parties:
        batch = BatchParams(
            session=self._session,
            batch=self._batches,
            steps=steps,
            roster=self._roster,
            threshold=self._threshold,
            threat_model="semi-honest" if self._credentials is None else "malicious",
            identities=()
            if self._credentials is None
            else self._credentials.identities(self._roster),
            ring=self._ring,
        )
        self._batches += 1
        return _Parties(batch, self._entropy, self._wire, self._credentials, self._answered)

    def _keep_better(self, parties: _Parties) -> None:
        if self._parties is None or len(parties.server.candidates) > len(self.candidates):
            self._end()
            self._parties = parties

    def _end(self) -> None:
        if self._parties is not None:
            self._parties.end()
            self._parties = None


class _Wire:
    """Counts and shows every message."""

    def __init__(self, tap: Tap | None) -> None:
        self._tap = tap
        self._counts = self._zeros()
        self.round_trips = 0

    @staticmethod
    def _zeros() -> ByteCounts:
        return {phase: {"up": {}, "down": {}} for phase in Phase}

    def carry(self, phase: Phase, direction: Direction, client: int, data: bytes) -> bytes:
        sizes = self._counts[phase][direction]
        sizes[client] = sizes.get(client, 0) + len(data)
        if self._tap is not None:
            self._tap(phase, direction, client, data)
        return data

    def take(self) -> ByteCounts:
        """What was counted since the last call."""
        counts, self._counts = self._counts, self._zeros()
        return counts


class _Parties:
    """The server and all clients of one batch."""

    def __init__(
        self,
        batch: BatchParams,
        entropy: Entropy,
        wire: _Wire,
        credentials: Credentials | None,
        answered: dict[int, int] | None = None,
    ) -> None:
        policy = None if credentials is None else credentials.policy
        keys: Mapping[int, SigningKey] = {} if credentials is None else credentials.keys
        self.server = ServerSession(batch, rejoin=None if policy is None else policy.rejoin)
        self._batch = batch
        # Client -> the last step it has answered, shared by the batches of a session (SPEC 2.4).
        self._answered = {} if answered is None else answered
        self._clients = {
            u: ClientSession(batch, u, entropy, identity=keys.get(u), policy=policy)
            for u in batch.roster
        }
        self._wire = wire

    def exchange_keys(self, drops: DropSchedule) -> None:
        """Rounds 0 and 1, on the ring with the draw between them."""
        self._wire.round_trips += 1
        directories = self.advertise_keys(drops)
        self._wire.round_trips += 1
        self.share_keys(directories, drops)

    def advertise_keys(self, drops: DropSchedule) -> dict[int, bytes]:
        """Round 0; returns the directories."""
        clients = self._clients
        return self._round(
            Phase.ADVERTISE_KEYS, self._batch.roster, drops, lambda u: clients[u].advertise_keys()
        )

    def share_keys(self, listed: Mapping[int, bytes], drops: DropSchedule) -> None:
        """Round 1, from the directories to opened bundles; on the ring first the draw."""
        clients, keys = self._clients, listed
        if self._batch.ring is not None:
            keys = self._round(
                Phase.DRAW_GRAPH, listed, drops, lambda u: clients[u].draw_graph(listed[u])
            )
            self._wire.round_trips += 1
        bundles = self._round(
            Phase.SHARE_KEYS, keys, drops, lambda u: clients[u].share_keys(keys[u])
        )
        for u, delivery in bundles.items():
            report = clients[u].open_bundles(delivery)
            if report is not None:
                self.server.receive(u, self._wire.carry(Phase.SHARE_KEYS, "up", u, report))

    def run_step(
        self,
        inputs: Mapping[int, Inputs],
        task: Task,
        drops: DropSchedule,
        beside: _Beside | None = None,
    ) -> AggregationResult:
        """Rounds 2 and 3, with the consistency round between them in the malicious model.

        Args:
            inputs: as in `run_aggregation`.
            task: what is summed.
            drops: who falls silent.
            beside: the next batch, whose two rounds travel with the first and the last of these.
        """
        try:
            self._run_step(inputs, task, drops, beside)
        except SecAggError:
            self.server.abandon_step()
            self._ask_for_evidence(drops)
            raise
        self._ask_for_evidence(drops)
        result = self.server.result
        return AggregationResult(dict(result.totals), result.survivors, self._wire.take())

    def _ask_for_evidence(self, drops: DropSchedule) -> None:
        """Find out who dealt or gave the shares that did not fit, if any (SPEC 6.10)."""
        requests = self._down(Phase.UNMASKING, self.server.evidence_requests())
        self._wire.round_trips += bool(requests)
        for u, request in requests.items():
            if not drops.silent(u, Phase.UNMASKING):
                answer = self._clients[u].evidence(request)
                self.server.receive(u, self._wire.carry(Phase.UNMASKING, "up", u, answer))
        self.server.end_evidence()

    def _run_step(
        self,
        inputs: Mapping[int, Inputs],
        task: Task,
        drops: DropSchedule,
        beside: _Beside | None,
    ) -> None:
        clients = self._clients
        for u in self.server.candidates:
            if u not in inputs and not drops.silent(u, Phase.MASKED_INPUT):
                raise LocalProtocolError(f"client {u} has no input and does not drop")

        def masked_input(u: int) -> bytes:
            above = self._answered.get(u, -1)
            reply = clients[u].masked_input(requests[u], task, inputs[u], above=above)
            self._answered[u] = task.step
            return reply

        requests = self._down(Phase.MASKED_INPUT, self.server.begin_step(task))
        if beside is not None:
            beside.advertise_keys()
        self._wire.round_trips += 1
        survivors = self._round(Phase.MASKED_INPUT, requests, drops, masked_input)
        shown = survivors
        if self._batch.malicious:
            self._wire.round_trips += 1
            shown = self._round(
                Phase.CONSISTENCY, survivors, drops, lambda u: clients[u].confirm(survivors[u])
            )
        if beside is not None:
            beside.share_keys()
        self._wire.round_trips += 1
        self._round(Phase.UNMASKING, shown, drops, lambda u: clients[u].unmask(shown[u]))

    def end(self) -> None:
        """Erase the clients' secrets."""
        for client in self._clients.values():
            client.end()

    def _round(
        self, phase: Phase, waiting: Iterable[int], drops: DropSchedule, answer: Answer
    ) -> dict[int, bytes]:
        for u in waiting:
            if not drops.silent(u, phase):
                self.server.receive(u, self._wire.carry(phase, "up", u, answer(u)))
        return self._down(phase, self.server.end_round())

    def _down(self, phase: Phase, replies: Mapping[int, bytes]) -> dict[int, bytes]:
        return {u: self._wire.carry(phase, "down", u, data) for u, data in replies.items()}


class _Beside:
    """The offline exchange of the next batch, in the round trips of a step.

    The step goes on whatever becomes of it; `prepared` is there only if it came to its end.
    """

    def __init__(self, parties: _Parties, drops: DropSchedule) -> None:
        self._parties = parties
        self._drops = drops
        self._directories: Mapping[int, bytes] = {}
        self.prepared: _Parties | None = None

    def advertise_keys(self) -> None:
        """Round 0, with the masked inputs."""
        with contextlib.suppress(NotEnoughSurvivors):
            self._directories = self._parties.advertise_keys(self._drops)

    def share_keys(self) -> None:
        """Round 1, with the shares; on the ring the draw, and round 1 after it (SPEC 6.2)."""
        if self._directories:
            with contextlib.suppress(NotEnoughSurvivors):
                self._parties.share_keys(self._directories, self._drops)
                self.prepared = self._parties
