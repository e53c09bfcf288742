"""Whole aggregations and batches in memory: the executable form of SPEC 6.

`protocols.rounds` is the loop. Here real sessions answer it over real bytes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.client.session import ClientSession
from protocols.client.step import Inputs
from protocols.errors import LocalProtocolError, SecAggError
from protocols.params import AggregationParams, BatchParams, Chosen, Ring, Task, Terms
from protocols.phases import NO_DROPS, OPEN_BUNDLES, DropSchedule, Phase, phase_of
from protocols.primitives.keys import Entropy
from protocols.rounds import Ask, Direction, Part, SumRounds, Tap
from protocols.signing import Credentials

SYSTEM: Entropy = os.urandom
"""The operating system's randomness, which is taken where a caller gives no entropy."""

ByteCounts = dict[Phase, dict[Direction, dict[int, int]]]


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
    drops: DropSchedule = NO_DROPS,
    entropy: Entropy | None = None,
    tap: Tap | None = None,
    credentials: Credentials | None = None,
) -> AggregationResult:
    """Run one aggregation between real sessions: a batch of one step (SPEC 6).

    Args:
        inputs: client -> section name -> unsigned integers of shape (length,), each 0..maximum;
            clients that drop at or before the masked input need none.
        params: what all parties agreed on.
        drops: who falls silent, and when.
        entropy: the source of all secrets; None asks the operating system.
        tap: is told of every message, also of an aggregation that then fails.
        credentials: the clients' signing keys and policy, in the malicious model.

    Raises:
        NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        LocalProtocolError: an input is missing or does not fit.
    """
    session = BatchSession(
        params.session,
        params.roster,
        params.threshold,
        entropy=entropy,
        tap=tap,
        credentials=credentials,
        ring=params.ring,
        chosen=params.chosen,
        first_batch=params.step,
    )
    session.prepare(1, [drops])
    return session.step(inputs, params.task, drops)


class BatchSession:
    """The steps of one training session in memory, their keys made in batches (SPEC 6.1 to 6.4).

    `prepare` makes keys for the next steps; each `step` then takes two round trips (malicious:
    three). The owner prepares again when `needs_keys` says so, or lets the next exchange travel
    with a step (`renew`).

    Args:
        session: 32 bytes, unique to the training session.
        roster: client ids, strictly ascending.
        threshold: clients that must answer every round.
        entropy: the source of all secrets; None asks the operating system.
        tap: is told of every message.
        credentials: the clients' signing keys and policy; with them, the malicious model is run.
        ring: the k-regular graph, drawn anew for every batch (`graph_parameters.ring_parameters`, M
            of the longest one). A ConfigError in the malicious model.
        chosen: the graph that clients choose, anew for every batch
            (`graph_parameters.chosen_parameters`), for the malicious model. Without it and without
            a ring the graph is complete.
        first_batch: the number of the first batch.
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
        chosen: Chosen | None = None,
        first_batch: int = 0,
    ) -> None:
        self._terms = Terms(
            session=session,
            roster=roster,
            threshold=threshold,
            threat_model="semi-honest" if credentials is None else "malicious",
            identities=() if credentials is None else credentials.identities(roster),
            ring=ring,
            chosen=chosen,
            rejoin=credentials is not None and credentials.policy.rejoin,
        )
        self._entropy = entropy or SYSTEM
        self._tap = tap
        self._credentials = credentials
        self._counts = _no_bytes()
        # Batch -> client -> session; the sessions of a batch end with it.
        self._clients: dict[int, dict[int, ClientSession]] = {}
        # Client -> the last step that it answered, in whatever batch (SPEC 2.4).
        self._answered = dict.fromkeys(roster, -1)
        self._rounds = SumRounds(
            self._terms,
            tap=self._carry,
            fault=_raise,
            ended=self._end,
            entropy=self._entropy,
            first_batch=first_batch,
        )

    @property
    def keys_left(self) -> int:
        """How many steps can still begin without another exchange."""
        return self._rounds.keys_left

    @property
    def candidates(self) -> tuple[int, ...]:
        """The clients that can be active in the next step, ascending; none without keys."""
        return self._rounds.candidates

    @property
    def needs_keys(self) -> bool:
        """Whether no keys are left, or one more lost client would stop the batch."""
        return self._rounds.needs_keys

    @property
    def round_trips(self) -> int:
        """How often the server waited for clients so far, in all batches."""
        return self._rounds.round_trips

    def prepare(self, steps: int, attempts: Iterable[DropSchedule] = (DropSchedule(),)) -> None:
        """Make keys for the next steps; see `SumRounds.prepare`.

        Args:
            steps: M, how many steps.
            attempts: who falls silent in the first attempt, the second, and so on.

        Raises:
            NotEnoughSurvivors: every attempt fell below the threshold.
        """
        self._rounds.prepare(steps, (self._asking(drops) for drops in attempts))

    def replace(self, steps: int, sharers: Collection[int], *, ahead: bool = False) -> None:
        """Make keys for the clients whose keys were lost; see `SumRounds.replace`."""
        self._rounds.replace(self._asking(DropSchedule()), steps, sharers, ahead=ahead)

    def step(
        self,
        inputs: Mapping[int, Inputs],
        task: Task,
        drops: DropSchedule = NO_DROPS,
        *,
        renew: int = 0,
    ) -> AggregationResult:
        """Run the next step. A client that missed the last one may be back or not (SPEC 8.1).

        Args:
            inputs: as in `run_aggregation`.
            task: what is summed, with a step number above all before.
            drops: who falls silent in this step. A client that drops in an offline round is
                silent all through the step.
            renew: M of the next batch, whose keys are made on the way; 0 makes none.

        Returns:
            The sum. Its bytes include those of the exchanges since the last result.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
            LocalProtocolError: no keys are left, or an input is missing or does not fit.
        """
        for u in self._rounds.keys.server.candidates:
            if u not in inputs and not drops.silent(u, Phase.MASKED_INPUT):
                raise LocalProtocolError(f"client {u} has no input and does not drop")
        result = self._rounds.step(self._asking(drops, task, inputs), task, renew=renew)
        counts, self._counts = self._counts, _no_bytes()
        return AggregationResult(dict(result.totals), result.survivors, counts)

    # Clients -----------------------------------------------------------------------------------

    def _asking(
        self,
        drops: DropSchedule,
        task: Task | None = None,
        inputs: Mapping[int, Inputs] | None = None,
    ) -> Ask:
        """Return the function that asks the clients, of which some fall silent."""
        running = self._rounds.keys.batch.batch if task is not None else None

        def answer(part: Part, client: int) -> bytes:
            session = self._session(part.batch, client)
            data = part.messages[client]
            if part.stage == Phase.ADVERTISE_KEYS:
                return session.advertise_keys()
            if part.stage == Phase.MASKED_INPUT and task is not None and inputs is not None:
                above = self._answered[client]
                reply = session.masked_input(data, task, inputs[client], above=above)
                self._answered[client] = task.step
                return reply
            return session.answer(part.stage, data)

        def ask(parts: Sequence[Part]) -> list[dict[int, bytes]]:
            replies = []
            for part in parts:
                riding = running is not None and part.batch.batch != running
                silence = drops.beside() if riding else drops
                opening = part.stage == OPEN_BUNDLES  # with the first masked input
                due = Phase.MASKED_INPUT if opening else phase_of(part.stage)
                there = [u for u in part.messages if not silence.silent(u, due)]
                replies.append({u: answer(part, u) for u in there})
            return replies

        return ask

    def _session(self, batch: BatchParams, client: int) -> ClientSession:
        sessions = self._clients.setdefault(batch.batch, {})
        if client not in sessions:
            credentials = self._credentials
            sessions[client] = ClientSession(
                batch,
                client,
                self._entropy,
                identity=credentials.keys[client] if credentials else None,
                policy=credentials.policy if credentials else None,
            )
        return sessions[client]

    def _end(self, batch: BatchParams) -> None:
        """Erase the clients' secrets of a batch."""
        for client in self._clients.pop(batch.batch, {}).values():
            client.end()

    def _carry(self, phase: Phase, direction: Direction, client: int, data: bytes) -> None:
        sizes = self._counts[phase][direction]
        sizes[client] = sizes.get(client, 0) + len(data)
        if self._tap is not None:
            self._tap(phase, direction, client, data)


def _no_bytes() -> ByteCounts:
    return {phase: {"up": {}, "down": {}} for phase in Phase}


def _raise(_: int, error: SecAggError) -> None:
    """Treat a refused message as a defect: all parties in memory follow the protocol."""
    raise error
