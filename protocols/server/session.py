"""The server of one batch: bytes in, bytes out (SPEC 6). `server.table` lists its rounds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from protocols import messages, signing
from protocols.errors import (
    CryptoError,
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    RemoteProtocolError,
    SeedLost,
)
from protocols.graph import Clients, Graph
from protocols.messages import BundleReport, UnmaskShares, Upload
from protocols.params import BatchParams, Task
from protocols.phases import Phase
from protocols.primitives.keys import Entropy
from protocols.server import offline, step
from protocols.server.offline import (
    Arrival,
    BatchKeys,
    CollectingKeys,
    Failed,
    Idle,
    check_sender,
)
from protocols.server.step import CollectingInputs, Finished, Online
from protocols.server.table import (
    ORDER,
    RESTING,
    ROUNDS,
    Collecting,
    Encoded,
    Round,
    State,
    moment,
)


class ServerSession:
    """The server of one batch: bytes in, bytes out.

    Call `receive` for every message that arrives, and `end_round` when all clients have answered
    or the caller's deadline is over: twice for the offline exchange (ring: three times); then,
    after every `begin_step`, twice (malicious: three times). A client whose message raises is
    barred from the rest of the batch, as if it had fallen silent; the others go on. When
    `end_round` raises, the step (offline: the batch) stays failed (SPEC 6.5).

    Args:
        batch: what all parties agreed on.
        rejoin: whether a client that missed a step may be active in the next one. None: only in
            the semi-honest model. Clients of the malicious model refuse it unless their policy
            allows it.
        barred: clients that are barred from the start. Whoever is barred later is added to this
            set, so that all batches of a session can share it (SPEC 6.5). None: nobody.
        entropy: `entropy(k)` returns k fresh random bytes. Only finding wrong shares needs it;
            None finds the same ones in more time (SPEC 3.7).
    """

    def __init__(
        self,
        batch: BatchParams,
        *,
        rejoin: bool | None = None,
        barred: set[int] | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        self._batch, self._entropy = batch, entropy
        self._rejoin = not batch.malicious if rejoin is None else rejoin
        self._cohort: frozenset[int] = frozenset(batch.roster)
        self._barred = set() if barred is None else barred
        self._reports: dict[int, frozenset[int]] = {}
        self._tasks: list[Task] = []
        self._keys: BatchKeys | None = None
        self._state: State = CollectingKeys({}, {}, set())

    def __repr__(self) -> str:
        return f"ServerSession({type(self._state).__name__})"

    @property
    def result(self) -> Finished:
        """The sum of the last step.

        Raises:
            LocalProtocolError: it has not finished.
        """
        if not isinstance(self._state, Finished):
            raise LocalProtocolError("there is no result")
        return self._state

    @property
    def keys(self) -> BatchKeys:
        """Public keys and commitments of the clients that shared.

        Raises:
            LocalProtocolError: the offline exchange is not over.
        """
        if self._keys is None:
            raise LocalProtocolError("the offline exchange is not over")
        return self._keys

    @property
    def keys_left(self) -> int:
        """How many steps can still begin."""
        return 0 if self._keys is None else self._batch.steps - len(self._tasks)

    @property
    def candidates(self) -> Clients:
        """The clients that can be active in the next step, ascending.

        U2 without those that were barred or fell silent, and without those that have too few
        holders among the rest.
        """
        return () if self._keys is None else self._candidates(self._keys)

    def _candidates(self, keys: BatchKeys) -> Clients:
        there = self._cohort.intersection(keys.sharers) - self._barred
        return self._graph(keys).stable(tuple(sorted(there)))

    def _graph(self, keys: BatchKeys) -> Graph:
        """Return the batch's graph without the pairs that lost each other."""
        return keys.graph.without(offline.lost_pairs(self._reports))

    # Rounds ------------------------------------------------------------------------------------

    def receive(self, client: int, data: bytes) -> bool:
        """Take in one message.

        Args:
            client: the sender, as the transport knows it.
            data: the encoded message.

        Returns:
            False if the message belongs to a round that has ended, and was discarded.

        Raises:
            DecodeError, RemoteProtocolError: the client is at fault and is barred from now on.
            LocalProtocolError: the batch has failed.
        """
        if isinstance(self._state, Failed):
            raise LocalProtocolError("the batch has failed")
        try:
            return self._receive(client, data)
        except (DecodeError, RemoteProtocolError):
            # A sender outside the roster is not remembered: anybody can invent such names.
            if client in self._batch.roster:
                self._barred.add(client)
            raise

    def end_round(self) -> Mapping[int, bytes]:
        """Fix who took part in the round and go on.

        Returns:
            Client -> encoded reply, encoded when it is asked for. Empty after the last round, when
            `result` is there.

        Raises:
            NotEnoughSurvivors: fewer senders than the threshold, in all or around one client.
            RemoteProtocolError: see `step.end_shares`.
            LocalProtocolError: no round is running.
        """
        state, row = self._state, self._row
        if row is None:
            raise LocalProtocolError("no round is running")
        # What fails now stays failed: the step online, the whole batch offline.
        self._state = Failed() if self._keys is None else Idle(self._keys)
        try:
            nxt, replies = row.end(self._batch, state)
        except RemoteProtocolError as error:
            # A lost seed proves nothing about its owner: enough others can have lied.
            if error.peer is not None and not isinstance(error, SeedLost):
                self._barred.add(error.peer)
            raise
        if type(nxt) not in row.leads_to:
            raise LocalProtocolError(f"{row.phase} does not lead to {type(nxt).__name__}")
        self._state = nxt
        if isinstance(nxt, Idle):
            self._keys = nxt.keys
        elif isinstance(state, CollectingInputs):
            self._lose(replies)
        return Encoded(replies)

    # Steps -------------------------------------------------------------------------------------

    def begin_step(self, task: Task, active: Collection[int] | None = None) -> dict[int, bytes]:
        """Start the next step. The caller sends the broadcast beside these requests.

        Args:
            task: what is summed. Its step number must be above those of all steps before.
            active: the clients that mask with each other; None: all `candidates`. Clients with
                too few holders among them are left out.

        Returns:
            Client -> encoded StepRequest.

        Raises:
            NotEnoughSurvivors: the active set is below the threshold. No keys are spent.
            LocalProtocolError: a step is running, no keys are left, or a client cannot be active.
        """
        if self._keys is None or not isinstance(self._state, RESTING):
            raise LocalProtocolError("a step can only begin after the one before")
        if self.keys_left == 0:
            raise LocalProtocolError("all keys of the batch are spent")
        if self._tasks and task.step <= self._tasks[-1].step:
            raise LocalProtocolError("step numbers must grow")
        candidates = self.candidates
        wanted = candidates if active is None else tuple(sorted(set(active)))
        if not set(wanted) <= set(candidates):
            raise LocalProtocolError("a client cannot be active")
        members = self._graph(self._keys).stable(wanted)
        if len(members) < self._batch.threshold:
            raise NotEnoughSurvivors(Phase.SHARE_KEYS, len(members), self._batch.threshold)
        lost = offline.lost_pairs(self._reports)
        request = step.request(self._batch, len(self._tasks), members, lost)
        self._state = step.begin(self._batch, self._keys, task, request, self._entropy)
        self._tasks.append(task)
        self._lose(members)
        return dict.fromkeys(members, messages.encode(request))

    def abandon_step(self) -> None:
        """Give up the running step, if there is one. Its keys stay spent (SPEC 6.5)."""
        if isinstance(self._state, Online):
            self._state = Idle(self._state.step.keys)

    def _lose(self, present: Collection[int]) -> None:
        """Without rejoining, a client that misses a step is out of the batch (SPEC 8.1)."""
        if not self._rejoin:
            self._cohort = frozenset(present)

    # One message -------------------------------------------------------------------------------

    @property
    def _row(self) -> Round | None:
        state = self._state
        return ROUNDS[type(state)] if isinstance(state, Collecting) else None

    @property
    def _phase(self) -> Phase:
        row = self._row
        return Phase.SHARE_KEYS if row is None else row.phase

    def _receive(self, client: int, data: bytes) -> bool:
        if client in self._barred:
            raise RemoteProtocolError(client, self._phase, "barred after an earlier fault")
        message, body, signature = signing.unwrap(data, self._batch, *self._tasks)
        bound = self._bound(message)
        if bound is None:
            if moment(message) > self._now():
                raise RemoteProtocolError(client, self._phase, "message of a later round")
            return False
        if client in self._batch.roster:
            self._check_signature(client, bound, body, signature)
        row = self._row
        if isinstance(message, BundleReport):
            self._report(client, message)
        elif row is not None:
            arrival = Arrival(client, message, data, signature)
            self._state = row.receive(self._batch, self._state, arrival)
        return True

    def _bound(self, message: Upload) -> bytes | None:
        """Return the context that a message due now is signed under; None if it is not due."""
        if isinstance(message, BundleReport):
            return None if self._keys is None else self._keys.off1
        row = self._row
        due = row is not None and moment(message) == self._now()
        return row.bound(self._batch, self._state) if row is not None and due else None

    def _now(self) -> tuple[int, int]:
        """Return the moment of the messages that are due; between steps, of the last step's."""
        row, state = self._row, self._state
        if row is None:
            return len(self._tasks) - 1, ORDER.index(UnmaskShares)
        key = state.step.key if isinstance(state, Online) else -1
        return key, ORDER.index(row.takes)

    def _check_signature(
        self, client: int, bound: bytes, body: bytes, signature: bytes | None
    ) -> None:
        try:
            signing.check(self._batch, client, bound, body, signature)
        except CryptoError as error:
            raise RemoteProtocolError(client, self._phase, str(error)) from None

    def _report(self, client: int, message: BundleReport) -> None:
        phase, keys = Phase.SHARE_KEYS, self.keys
        check_sender(client, keys.sharers, self._reports, phase)
        accused = frozenset(messages.decode_set(message.unopened, self._batch.roster))
        if not accused <= set(keys.graph.senders(client)).intersection(keys.sharers):
            raise RemoteProtocolError(client, phase, "report on a client that sent no bundle")
        self._reports[client] = accused
