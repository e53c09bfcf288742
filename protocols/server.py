"""The server: one state per round, one function for an arrival, one for the round's end (SPEC 6).

    CollectingKeys (ring: -> CollectingNonces) -> CollectingBundles -> Idle
    and per step: CollectingInputs (-> CollectingSignatures) -> CollectingShares -> Finished

Masked inputs are added as they arrive, so memory holds one running sum and no client's vector
(SPEC 6.3). Ending a round fixes who took part in it; anything late is discarded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from protocols import context, masking, messages, preprocessing, signing
from protocols.errors import (
    CryptoError,
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    RemoteProtocolError,
)
from protocols.evidence import Doubt, Inquiry
from protocols.graph import Clients, Graph
from protocols.messages import (
    Advertisement,
    BundleReport,
    Consistency,
    ConsistencyProof,
    EvidenceRequest,
    MaskedInput,
    Message,
    Nonce,
    ShareBundles,
    ShareEvidence,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
    Upload,
)
from protocols.packing import unpack
from protocols.params import BatchParams, Phase, Task
from protocols.preprocessing import (
    CollectingBundles,
    CollectingKeys,
    CollectingNonces,
    Group,
    Stock,
    check_sender,
    enough,
    share_points,
)
from protocols.seeds import Kind, SeedSlot
from protocols.shamir import decode_element

Vectors = tuple[NDArray[np.uint32], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What is fixed for a step when it begins."""

    batch: BatchParams
    stock: Stock
    key: int
    task: Task
    active: tuple[int, ...]
    on: bytes

    @property
    def graph(self) -> Graph:
        """Who masks with whom, and who holds whose shares."""
        return self.stock.graph

    def mask_key(self, client: int) -> bytes:
        """A client's public mask key of this step."""
        return self.stock.advertised[client].mask_keys[self.key]


@dataclass(frozen=True, slots=True)
class Idle:
    """No step is running."""


@dataclass(frozen=True, slots=True)
class CollectingInputs:
    """Round 2: the running sum and who is in it."""

    step: Step
    received: frozenset[int]
    totals: Vectors = field(repr=False)


@dataclass(frozen=True, slots=True)
class CollectingSignatures:
    """Consistency round: the masked sum over the survivors, and their signatures on that set."""

    step: Step
    survivors: tuple[int, ...]
    totals: Vectors = field(repr=False)
    received: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class CollectingShares:
    """Round 3: the masked sum over the survivors, and the shares of those that can answer."""

    step: Step
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]  # the active set without U3: sent no masked input
    responders: tuple[int, ...]
    totals: Vectors = field(repr=False)
    received: dict[int, UnmaskShares]

    @classmethod
    def of(
        cls, step: Step, survivors: Clients, responders: Clients, totals: Vectors
    ) -> CollectingShares:
        """The round before any answer."""
        alive = frozenset(survivors)
        dropped = tuple(u for u in step.active if u not in alive)
        return cls(step, survivors, dropped, responders, totals, {})


@dataclass(frozen=True, slots=True)
class Finished:
    """The sum of the survivors' inputs.

    Attributes:
        totals: section name -> uint32, shape (length,).
        survivors: whose inputs are in it, ascending.
        liars: clients whose share was found to be wrong; the sum is right all the same. In the
            malicious model others may have dealt it to them (`ServerSession.evidence_requests`).
    """

    totals: Mapping[str, NDArray[np.uint32]] = field(repr=False)
    survivors: tuple[int, ...]
    liars: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Failed:
    """The offline exchange failed; no step of this batch will ever run."""


Offline = CollectingKeys | CollectingNonces | CollectingBundles
Online = CollectingInputs | CollectingSignatures | CollectingShares
State = Offline | Idle | Online | Finished | Failed

_OFFLINE_UPLOADS = Advertisement, Nonce, ShareBundles, BundleReport
_OFFLINE = CollectingKeys, CollectingNonces, CollectingBundles
_PHASES: dict[type[Offline | Online], Phase] = {
    CollectingKeys: Phase.ADVERTISE_KEYS,
    CollectingNonces: Phase.DRAW_GRAPH,
    CollectingBundles: Phase.SHARE_KEYS,
    CollectingInputs: Phase.MASKED_INPUT,
    CollectingSignatures: Phase.CONSISTENCY,
    CollectingShares: Phase.UNMASKING,
}


# Round 2: masked input collection --------------------------------------------------------------


def _begin(
    batch: BatchParams, stock: Stock, task: Task, active: tuple[int, ...], request: StepRequest
) -> CollectingInputs:
    on = context.online(stock.off1, request.key, task, batch.n, request.active)
    zeros = tuple(np.zeros(section.length, dtype=np.uint32) for section in task.sections)
    return CollectingInputs(Step(batch, stock, request.key, task, active, on), frozenset(), zeros)


def receive_input(state: CollectingInputs, client: int, message: MaskedInput) -> CollectingInputs:
    """Add a masked input to the running sum (SPEC 6.3).

    Raises:
        DecodeError: a vector of wrong size, with an element >= p or with padding bits set.
    """
    check_sender(client, state.step.active, state.received, Phase.MASKED_INPUT)
    task, n = state.step.task, state.step.batch.n
    vectors = _unpack_sections(task, n, message)
    parts = zip(task.fields(n), state.totals, vectors, strict=True)
    totals = tuple(field.add(total, vector) for field, total, vector in parts)
    return CollectingInputs(state.step, state.received | {client}, totals)


def _unpack_sections(task: Task, n: int, message: MaskedInput) -> Vectors:
    if len(message.sections) != len(task.sections):
        raise DecodeError("wrong number of sections")
    vectors = []
    for section, field_, data in zip(task.sections, task.fields(n), message.sections, strict=True):
        vector = unpack(data, field_.bits, section.length)
        if not field_.contains(vector):
            raise DecodeError("a masked element is not in the field")
        vectors.append(vector)
    return tuple(vectors)


def end_inputs(
    state: CollectingInputs,
) -> tuple[CollectingSignatures | CollectingShares, dict[int, Message]]:
    """Fix U3, the set whose inputs are in the sum, and announce it (SPEC 6.3).

    Raises:
        NotEnoughSurvivors: |U3| below the threshold, or too small around one client.
    """
    step = state.step
    survivors = _enough_holders(step, state.received, Phase.MASKED_INPUT)
    message = SurvivorSet(messages.encode_set(survivors, step.batch.roster))
    nxt: CollectingSignatures | CollectingShares
    if step.batch.malicious:
        nxt = CollectingSignatures(step, survivors, state.totals, received={})
    else:
        nxt = CollectingShares.of(step, survivors, survivors, state.totals)
    return nxt, dict.fromkeys(survivors, message)


def _enough_holders(step: Step, received: Group, phase: Phase) -> Clients:
    """The senders of a round in roster order, if they can open what every active client shared.

    Raises:
        NotEnoughSurvivors: they are fewer than the threshold, or than a seed needs holders.
    """
    senders = enough(step.batch, received, phase)
    left, around = step.graph.weakest(step.active, frozenset(senders))
    if left < step.batch.share_threshold:
        raise NotEnoughSurvivors(phase, left, step.batch.share_threshold, around)
    return senders


# Consistency, malicious model -------------------------------------------------------------------


def statement(state: CollectingSignatures | CollectingShares) -> bytes:
    """What the survivors sign: this step and this survivor set (SPEC 6.8)."""
    bitmap = messages.encode_set(state.survivors, state.step.batch.roster)
    return context.survivors(state.step.on, bitmap)


def end_signatures(state: CollectingSignatures) -> tuple[CollectingShares, dict[int, Message]]:
    """Show the signers each other's signatures (SPEC 6.8).

    Raises:
        NotEnoughSurvivors: fewer signatures than the threshold.
    """
    signers = enough(state.step.batch, state.received, Phase.CONSISTENCY)
    proof = ConsistencyProof(
        messages.encode_set(signers, state.step.batch.roster),
        tuple(state.received[u] for u in signers),
    )
    nxt = CollectingShares.of(state.step, state.survivors, signers, state.totals)
    return nxt, dict.fromkeys(signers, proof)


# Round 3: unmasking ----------------------------------------------------------------------------


def receive_shares(state: CollectingShares, client: int, message: UnmaskShares) -> CollectingShares:
    """Record a survivor's shares (SPEC 6.4).

    Raises:
        DecodeError: a share is not a field element.
    """
    check_sender(client, state.responders, state.received, Phase.UNMASKING)
    owners = [state.step.graph.held(client, group) for group in (state.survivors, state.dropped)]
    if [len(message.self_shares), len(message.key_shares)] != [len(group) for group in owners]:
        raise RemoteProtocolError(client, Phase.UNMASKING, "wrong number of shares")
    for share in message.self_shares + message.key_shares:
        decode_element(share)
    state.received[client] = message
    return state


def end_shares(state: CollectingShares, seeds: _Seeds) -> Finished:
    """Find the seeds, remove every mask, and give the sum (SPEC 6.4).

    Args:
        state: with the shares of all that answered.
        seeds: keeps what did not fit, also when this raises.

    Raises:
        NotEnoughSurvivors: fewer answers than the threshold, or too few about one client.
        RemoteProtocolError: no shares of a client give the seed that it committed to.
    """
    step = state.step
    _enough_holders(step, state.received, Phase.UNMASKING)
    total = masking.MaskedSum(step.task, step.batch.n, state.totals)
    for survivor, shares in _by_owner(state, Kind.SELF_MASK):
        seed = seeds.find(survivor, Kind.SELF_MASK, shares)
        total.add(masking.self_mask_key(seed, survivor, step.on), -1)
    for dropped, shares in _by_owner(state, Kind.MASK_KEY):
        _remove_pair_masks(state, total, dropped, seeds.find(dropped, Kind.MASK_KEY, shares))
    names = [section.name for section in step.task.sections]
    sums = dict(zip(names, total.reduced(), strict=True))
    return Finished(sums, state.survivors, frozenset(seeds.liars))


def _by_owner(state: CollectingShares, kind: Kind) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Every client that one kind of seed is needed of, and its shares by holder.

    A holder lists its shares in the order of the owners; each list is read once from its start.
    """
    own = kind is Kind.SELF_MASK
    owners = state.survivors if own else state.dropped
    lists = {u: iter(m.self_shares if own else m.key_shares) for u, m in state.received.items()}
    answered = tuple(sorted(lists))
    for owner in owners:
        yield owner, {u: next(lists[u]) for u in state.step.graph.held(owner, answered)}


class _Seeds:
    """Finds committed seeds, and remembers whose shares did not fit.

    Attributes:
        liars: clients that answered with a wrong share.
        doubts: by client, its shares that did not fit, or may not.
        found: seeds that were found in spite of wrong shares.
        lost: whether a seed was not; its owner may be honest.
    """

    def __init__(self, state: CollectingShares) -> None:
        self._state = state
        self._off0 = context.offline(state.step.batch)
        self._points = share_points(state.step.batch.roster)
        self.liars: set[int] = set()
        self.doubts: dict[int, list[Doubt]] = {}
        self.found: set[tuple[int, Kind]] = set()
        self.lost = False

    def find(self, client: int, kind: Kind, shares: Mapping[int, bytes]) -> bytes:
        """The seed; shares of known liars are used only if the others are not enough."""
        step = self._state.step
        slot = SeedSlot(self._off0, client, step.key, kind)
        commitment = step.stock.commitment(client, step.key, kind)
        threshold = step.batch.share_threshold
        trusted = {u: share for u, share in shares.items() if u not in self.liars}
        for chosen in (trusted, shares) if len(trusted) < len(shares) else (shares,):
            by_point = {self._points[u]: share for u, share in chosen.items()}
            try:
                seed, wrong = slot.recover(by_point, threshold, commitment)
            except CryptoError:
                continue
            self._doubt(client, kind, {u: s for u, s in chosen.items() if self._points[u] in wrong})
            self.found.add((client, kind))
            self.liars |= {u for u in chosen if self._points[u] in wrong}
            return seed
        self._doubt(client, kind, shares)
        self.lost = True
        raise RemoteProtocolError(
            client, Phase.UNMASKING, "the shares do not give the committed seed"
        )

    def inquiry(self) -> Inquiry | None:
        """What is to be asked; None if all shares fitted."""
        if not self.doubts:
            return None
        step = self._state.step
        slots = {(d.owner, d.kind) for doubts in self.doubts.values() for d in doubts}
        return Inquiry(
            step.batch,
            self._off0,
            step.stock.off1,
            step.key,
            statement(self._state),
            {u: tuple(doubts) for u, doubts in self.doubts.items()},
            frozenset(self.found),
            {slot: step.stock.commitment(slot[0], step.key, slot[1]) for slot in slots},
            self._points,
        )

    def _doubt(self, owner: int, kind: Kind, shares: Mapping[int, bytes]) -> None:
        for u, share in shares.items():
            self.doubts.setdefault(u, []).append(Doubt(owner, kind, share))


def _remove_pair_masks(
    state: CollectingShares, total: masking.MaskedSum, dropped: int, seed: bytes
) -> None:
    """Take back what every survivor added for a client that then fell silent."""
    step = state.step
    pair = masking.mask_key_pair(seed, dropped, step.key, context.offline(step.batch))
    if pair.public != step.mask_key(dropped):
        raise RemoteProtocolError(
            dropped, Phase.UNMASKING, "the committed seed does not give the advertised key"
        )
    near = frozenset(step.graph.neighbours(dropped))
    for survivor in near.intersection(state.survivors):
        public = step.mask_key(survivor)
        key = masking.pair_mask_key(pair, dropped, survivor, public, step.on)
        total.add(key, -masking.pair_sign(survivor, dropped))


# Session ---------------------------------------------------------------------------------------


class _Encoded(Mapping[int, bytes]):
    """Replies by client, encoded when they are asked for.

    On the ring every reply of the draw lists all nonces: n encoded ones would take n^2 bytes.
    """

    def __init__(self, replies: Mapping[int, Message]) -> None:
        self._replies = replies
        self._last: tuple[Message | None, bytes] = None, b""

    def __getitem__(self, client: int) -> bytes:
        reply = self._replies[client]
        if reply is not self._last[0]:  # most rounds send the same to all
            self._last = reply, messages.encode(reply)
        return self._last[1]

    def __iter__(self) -> Iterator[int]:
        return iter(self._replies)

    def __len__(self) -> int:
        return len(self._replies)


def _evidence_request(batch: BatchParams, inquiry: Inquiry, client: int) -> EvidenceRequest:
    owners = {
        kind: messages.encode_set(
            [doubt.owner for doubt in inquiry.doubts[client] if doubt.kind is kind], batch.roster
        )
        for kind in Kind
    }
    return EvidenceRequest(inquiry.key, owners[Kind.SELF_MASK], owners[Kind.MASK_KEY])


class ServerSession:
    """The server of one batch: bytes in, bytes out.

    Call `receive` for every arriving message and `end_round` when all have answered or the
    caller's deadline is over: twice for the offline exchange (ring: three times); then, after every
    `begin_step`, twice for the step. A client whose message raises is barred from the rest of the
    batch, as if it had fallen silent; the others go on. When `end_round` raises, the step (offline:
    the batch) stays failed (SPEC 6.5).

    Args:
        batch: agreed by all parties beforehand.
        rejoin: whether a client that missed a step may be active in the next one; None says no in
            the malicious model, where clients refuse it unless their policy allows it.
    """

    def __init__(self, batch: BatchParams, *, rejoin: bool | None = None) -> None:
        self._batch = batch
        self._rejoin = not batch.malicious if rejoin is None else rejoin
        self._cohort: frozenset[int] = frozenset(batch.roster)
        self._barred: set[int] = set()
        self._reports: dict[int, frozenset[int]] = {}
        self._tasks: list[Task] = []
        self._stock: Stock | None = None
        self._inquiry: Inquiry | None = None
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
    def stock(self) -> Stock:
        """Public keys and commitments of those that shared.

        Raises:
            LocalProtocolError: the offline exchange is not over.
        """
        if self._stock is None:
            raise LocalProtocolError("the offline exchange is not over")
        return self._stock

    @property
    def keys_left(self) -> int:
        """How many steps can still begin."""
        return 0 if self._stock is None else self._batch.steps - len(self._tasks)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Who can be active, ascending.

        U2 without those that were barred, left out or lost, and on the ring without those that
        have too few neighbours among the rest.
        """
        return () if self._stock is None else self._candidates(self._stock, frozenset())

    def _candidates(self, stock: Stock, named: frozenset[int]) -> tuple[int, ...]:
        """The same after these are barred as well."""
        there = self._cohort.intersection(stock.sharers) - self._barred - named
        left_out = preprocessing.left_out(
            {u: others & there for u, others in self._reports.items() if u in there}
        )
        return stock.graph.stable(tuple(sorted(there - left_out)))

    def receive(self, client: int, data: bytes) -> bool:
        """Take in one message.

        Args:
            client: who sent it, as the transport knows it.
            data: the encoded message.

        Returns:
            False if the message belongs to a round that has ended and was discarded.

        Raises:
            DecodeError, RemoteProtocolError: the client is at fault and barred from now on.
            LocalProtocolError: nothing is being collected.
        """
        if isinstance(self._state, Failed):
            raise LocalProtocolError("the batch has failed")
        try:
            return self._receive(client, data)
        except (DecodeError, RemoteProtocolError):
            if client in self._batch.roster:
                self._barred.add(client)
            raise

    def end_round(self) -> Mapping[int, bytes]:
        """Fix who took part in the round and go on.

        Returns:
            Client -> encoded reply, encoded when it is asked for; empty after the last round,
            when `result` is there.

        Raises:
            NotEnoughSurvivors: fewer senders than the threshold, in all or around one client.
            RemoteProtocolError: see `end_shares`.
            LocalProtocolError: nothing is being collected.
        """
        state = self._state
        replies: dict[int, Message] = {}
        match state:
            case CollectingKeys():
                self._state = Failed()
                self._state, replies = preprocessing.end_keys(self._batch, state)
            case CollectingNonces():
                self._state = Failed()
                self._state, replies = preprocessing.end_nonces(self._batch, state)
            case CollectingBundles():
                self._state = Failed()
                self._stock, replies = preprocessing.end_bundles(self._batch, state)
                self._state = Idle()
            case CollectingInputs():
                self._state = Idle()
                self._state, replies = end_inputs(state)
                self._lose(replies)
            case CollectingSignatures():
                self._state = Idle()
                self._state, replies = end_signatures(state)
            case CollectingShares():
                self._state = Idle()
                self._state = self._finished(state)
            case Idle() | Finished() | Failed():
                raise LocalProtocolError("no round is running")
            case _:
                assert_never(state)
        return _Encoded(replies)

    def begin_step(self, task: Task, active: Collection[int] | None = None) -> dict[int, bytes]:
        """Start the next step; the caller sends the broadcast beside these requests.

        Args:
            task: what is summed. Its step number must be above those of all steps before.
            active: who masks with whom; all `candidates` if None. On the ring who has too few
                neighbours among them is left out.

        Returns:
            Client -> encoded StepRequest.

        Raises:
            NotEnoughSurvivors: the active set is below the threshold. No keys are spent.
            LocalProtocolError: a step is running, no keys are left, or a client cannot be active.
        """
        if self._stock is None or not isinstance(self._state, Idle | Finished):
            raise LocalProtocolError("a step can only begin after the one before")
        if self.keys_left == 0:
            raise LocalProtocolError("all keys of the batch are spent")
        if self._tasks and task.step <= self._tasks[-1].step:
            raise LocalProtocolError("step numbers must grow")
        # Who is named when the step begins; until then evidence may still come.
        named = frozenset() if self._inquiry is None else self._inquiry.verdict()
        candidates = self._candidates(self._stock, named)
        wanted = candidates if active is None else tuple(sorted(set(active)))
        if not set(wanted) <= set(candidates):
            raise LocalProtocolError("a client cannot be active")
        members = self._stock.graph.stable(wanted)
        if len(members) < self._batch.threshold:
            raise NotEnoughSurvivors(Phase.SHARE_KEYS, len(members), self._batch.threshold)
        self.end_evidence()
        request = StepRequest(len(self._tasks), messages.encode_set(members, self._batch.roster))
        self._state = _begin(self._batch, self._stock, task, members, request)
        self._tasks.append(task)
        self._lose(members)
        return dict.fromkeys(members, messages.encode(request))

    def abandon_step(self) -> None:
        """Give up the running step, if there is one; its keys stay spent (SPEC 6.5)."""
        if isinstance(self._state, Online):
            self._state = Idle()

    def _lose(self, present: Collection[int]) -> None:
        """Without rejoining, who misses a step is out of the batch (SPEC 8.1)."""
        if not self._rejoin:
            self._cohort = frozenset(present)

    def _finished(self, state: CollectingShares) -> Finished:
        """End the step; who gave or dealt wrong shares is barred, or asked first (SPEC 6.10)."""
        seeds = _Seeds(state)
        try:
            finished = end_shares(state, seeds)
        except RemoteProtocolError as error:
            # A seed that was found and is not that of its key is its dealer's fault for certain.
            if error.peer is not None and not (self._batch.malicious and seeds.lost):
                self._barred.add(error.peer)
            raise
        finally:
            if self._batch.malicious:
                self._inquiry = seeds.inquiry()
        if not self._batch.malicious:
            self._barred |= finished.liars
        return finished

    def evidence_requests(self) -> dict[int, bytes]:
        """After a step in which shares did not fit, malicious model: whom to ask for evidence.

        Returns:
            Client -> encoded EvidenceRequest; empty if there is nothing to ask.
        """
        if self._inquiry is None:
            return {}
        return {
            u: messages.encode(_evidence_request(self._batch, self._inquiry, u))
            for u in sorted(self._inquiry.doubts)
        }

    def end_evidence(self) -> frozenset[int]:
        """Decide from the evidence that came who gave or dealt wrong shares, and bar them.

        A client that was asked and has not answered counts as one that cannot prove its shares.

        Returns:
            Who is named; nobody if nothing was asked.
        """
        inquiry, self._inquiry = self._inquiry, None
        named = frozenset() if inquiry is None else inquiry.verdict()
        self._barred |= named
        return named

    def _receive(self, client: int, data: bytes) -> bool:
        if client in self._barred:
            raise RemoteProtocolError(client, self._phase, "barred after an earlier fault")
        message, body, signature = signing.unwrap(data, self._batch, *self._tasks)
        bound = self._bound(message)
        if bound is None:
            self._refuse_if_early(client, message)
            return False
        if client in self._batch.roster:
            self._check_signature(client, bound, body, signature)
        self._state = self._accept(client, message, data, signature)
        return True

    def _accept(self, client: int, message: Upload, data: bytes, signature: bytes | None) -> State:
        batch, state = self._batch, self._state
        match state, message:
            case CollectingKeys(), Advertisement():
                state = preprocessing.receive_keys(batch, state, client, message, data)
            case CollectingNonces(), Nonce():
                state = preprocessing.receive_nonce(batch, state, client, message)
            case CollectingBundles(), ShareBundles():
                state = preprocessing.receive_bundles(batch, state, client, message)
            case CollectingInputs(), MaskedInput():
                state = receive_input(state, client, message)
            case CollectingSignatures(), Consistency():
                check_sender(client, state.survivors, state.received, Phase.CONSISTENCY)
                state = replace(state, received={**state.received, client: signature or b""})
            case CollectingShares(), UnmaskShares():
                state = receive_shares(state, client, message)
            case _, BundleReport():
                self._report(client, message)
            case _, ShareEvidence():
                self._take_evidence(client, message)
            case _:
                raise LocalProtocolError("message is not due")
        return state

    def _bound(self, message: Upload) -> bytes | None:
        """The context that a message due now is signed under; None if it is not due."""
        match self._state, message:
            case CollectingInputs(step=step), MaskedInput(key=key) if key == step.key:
                return step.on
            case (CollectingSignatures(step=step) as state, Consistency(key=key)) | (
                CollectingShares(step=step) as state,
                UnmaskShares(key=key),
            ) if key == step.key:
                return statement(state) if self._batch.malicious else step.on
            case _, ShareEvidence(key=key) if self._inquiry and key == self._inquiry.key:
                return self._inquiry.bound
        return self._bound_offline(message)

    def _bound_offline(self, message: Upload) -> bytes | None:
        match self._state, message:
            case (CollectingKeys(), Advertisement()) | (CollectingNonces(), Nonce()):
                return context.offline(self._batch)
            case CollectingBundles(off1=off1), ShareBundles():
                return off1
            case _, BundleReport() if self._stock is not None:
                return self._stock.off1
        return None

    def _check_signature(
        self, client: int, bound: bytes, body: bytes, signature: bytes | None
    ) -> None:
        try:
            signing.check(self._batch, client, bound, body, signature)
        except CryptoError as error:
            raise RemoteProtocolError(client, self._phase, str(error)) from None

    @property
    def _phase(self) -> Phase:
        state = self._state
        if isinstance(state, Idle | Finished | Failed):
            return Phase.SHARE_KEYS
        return _PHASES[type(state)]

    def _report(self, client: int, message: BundleReport) -> None:
        phase = Phase.SHARE_KEYS
        sharers = () if self._stock is None else self._stock.sharers
        check_sender(client, sharers, self._reports, phase)
        accused = frozenset(messages.decode_set(message.unopened, self._batch.roster))
        senders = self.stock.graph.neighbours(client)
        if not accused <= set(senders).intersection(sharers):
            raise RemoteProtocolError(client, phase, "report on a client that sent no bundle")
        self._reports[client] = accused

    def _take_evidence(self, client: int, message: ShareEvidence) -> None:
        inquiry = self._inquiry
        if inquiry is not None:
            asked = tuple(inquiry.doubts)
            check_sender(client, asked, inquiry.proven, Phase.UNMASKING)
            inquiry.answered(client, message.signatures, message.paths)

    def _refuse_if_early(self, client: int, message: Upload) -> None:
        """What belongs to a round that is over is merely late; anything else is a fault."""
        if self._order(message) > self._now():
            raise RemoteProtocolError(client, self._phase, "message of a later round")

    def _order(self, message: Upload) -> tuple[int, int]:
        match message:
            case Advertisement() | Nonce() | ShareBundles() | BundleReport():
                return -1, [isinstance(message, kind) for kind in _OFFLINE_UPLOADS].index(True)
            case MaskedInput():
                return message.key, 0
            case Consistency():
                return message.key, 1
            case UnmaskShares():
                return message.key, 2
            case ShareEvidence():
                return message.key, 3

    def _now(self) -> tuple[int, int]:
        match self._state:
            case CollectingKeys() | CollectingNonces() | CollectingBundles() as state:
                return -1, _OFFLINE.index(type(state))
            case CollectingInputs(step=step):
                return step.key, 0
            case CollectingSignatures(step=step):
                return step.key, 1
            case CollectingShares(step=step):
                return step.key, 2
            case _:
                return len(self._tasks) - 1, 2
