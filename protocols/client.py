"""The client: from a batch's keys to masked inputs and shares, step by step (SPEC 6.3, 6.4).

    Start -> Advertised (ring: -> Drawn) -> Shared -> Prepared
    and within Prepared per step: Masked -> spent

A transition takes the state and the server's message and returns the next state and the reply.
`ClientSession` carries bytes in and out and makes sure that no key is used twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocols import context, evidence, masking, messages, preprocessing, signing
from protocols.errors import CryptoError, LocalProtocolError, RemoteProtocolError
from protocols.keys import Entropy, KeyPair, SigningKey
from protocols.messages import (
    BundleDelivery,
    Consistency,
    ConsistencyProof,
    EvidenceRequest,
    KeyDirectory,
    MaskedInput,
    NonceCommitments,
    RingDirectory,
    ShareEvidence,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.packing import pack
from protocols.params import BatchParams, Phase, Task
from protocols.policy import Policy
from protocols.preprocessing import (
    Advertised,
    Confirmed,
    Drawn,
    KeyShare,
    Masked,
    Party,
    Prepared,
    SelfShare,
    Shared,
    Start,
    State,
    Unmasked,
    lie,
)
from protocols.seeds import Kind

Inputs = Mapping[str, NDArray[np.unsignedinteger]]


class Failed(State, frozen=True):
    """The offline exchange failed; nothing runs in this batch again."""


class Ended(State, frozen=True):
    """The batch is over; all of its secrets are gone."""


# Round 2: masked input collection --------------------------------------------------------------


def mask_input(
    party: Party, state: Prepared, request: StepRequest, task: Task, inputs: Inputs
) -> tuple[Prepared, MaskedInput, bytes]:
    """Mask the input with the keys of one step, over the active set (SPEC 6.3).

    Returns:
        The next state, the reply, and the online context.

    Raises:
        LocalProtocolError: the input does not fit the task.
        PolicyError: the task is outside the policy.
        DecodeError, RemoteProtocolError: the request is not acceptable.
    """
    if party.policy is not None:
        party.policy.check_task(task)
    vectors = _checked_inputs(task, inputs)
    active = _checked_active(party, state, request)
    if task.step <= state.last_step:
        raise lie(Phase.MASKED_INPUT, "step number does not grow")
    keys = state.unused[request.key]
    on = context.online(state.off1, request.key, task, party.batch.n, request.active)
    total = masking.MaskedSum(task, party.batch.n, vectors)
    total.add(masking.self_mask_key(keys.seeds.self_mask, party.client, on), 1)
    own = masking.mask_key_pair(keys.seeds.mask_key, party.client, request.key, party.off0)
    for peer in (v for v in active if v in state.mask_keys):
        public = state.mask_keys[peer][request.key]
        total.add(_pair_key(party, own, peer, public, on), masking.pair_sign(party.client, peer))
    fields = task.fields(party.batch.n)
    packed = tuple(pack(v, field.bits) for v, field in zip(total.reduced(), fields, strict=True))
    held = {u: keys.held[u] for u in active if u in keys.held}
    strangers = tuple(u for u in active if u not in held)
    current = Masked(request.key, on, held, strangers)
    left = spend(state, request.key)
    nxt = msgspec.structs.replace(left, current=current, last_step=task.step, cohort=active)
    return nxt, MaskedInput(request.key, packed), on


def spend(state: Prepared, key: int) -> Prepared:
    """Erase the keys of a step and of all before it, and the shares of the last one (SPEC 3.9)."""
    unused = {later: keys for later, keys in state.unused.items() if later > key}
    return msgspec.structs.replace(state, unused=unused, current=None)


def _checked_inputs(task: Task, inputs: Inputs) -> list[NDArray[np.unsignedinteger]]:
    if set(inputs) != {section.name for section in task.sections}:
        raise LocalProtocolError("input sections are not those of the task")
    for section in task.sections:
        vector = inputs[section.name]
        if vector.shape != (section.length,) or vector.dtype.kind != "u":
            raise LocalProtocolError(f"section {section.name!r}: wrong shape or dtype")
        if int(vector.max()) > section.maximum:
            raise LocalProtocolError(f"section {section.name!r}: an entry is out of range")
    return [inputs[section.name] for section in task.sections]


def _checked_active(party: Party, state: Prepared, request: StepRequest) -> tuple[int, ...]:
    """The active set, after every check of SPEC 6.3."""
    active = messages.decode_set(request.active, party.batch.roster)
    if request.key not in state.unused:
        raise lie(Phase.MASKED_INPUT, "keys of this step are spent or were never made")
    if len(active) < party.batch.threshold:
        raise lie(Phase.MASKED_INPUT, "active set below the threshold")
    if party.client not in active:
        raise lie(Phase.MASKED_INPUT, "own id is not in the active set")
    held = state.unused[request.key].held
    if not set(active) <= {*held, *state.strangers}:
        raise lie(Phase.MASKED_INPUT, "active client whose bundle was never opened")
    if sum(u in held for u in active) < party.batch.share_threshold:
        raise lie(Phase.MASKED_INPUT, "too few active neighbours to hold shares")
    shrinking = party.policy is not None and not party.policy.rejoin
    if shrinking and state.cohort is not None and not set(active) <= set(state.cohort):
        raise lie(Phase.MASKED_INPUT, "a client that missed the last step is active again")
    return active


def _pair_key(party: Party, own: KeyPair, peer: int, public: bytes, on: bytes) -> bytes:
    try:
        return masking.pair_mask_key(own, party.client, peer, public, on)
    except CryptoError as error:
        raise RemoteProtocolError(peer, Phase.MASKED_INPUT, str(error)) from None


# Consistency, malicious model -------------------------------------------------------------------


def confirm(party: Party, state: Masked, message: SurvivorSet) -> Confirmed:
    """Settle on a survivor set: the client signs this one and no other (SPEC 6.8).

    Raises:
        DecodeError, RemoteProtocolError: the survivor set is not acceptable.
    """
    survivors = messages.decode_set(message.survivors, party.batch.roster)
    check_survivors(party, state, survivors)
    return Confirmed(state.key, state.on, state.held, survivors, state.strangers)


def statement(party: Party, state: Confirmed) -> bytes:
    """What binds a signature to this step and this survivor set."""
    return context.survivors(state.on, messages.encode_set(state.survivors, party.batch.roster))


def check_proof(party: Party, state: Confirmed, message: ConsistencyProof) -> None:
    """Check that at least t clients of U3 have signed the same U3 (SPEC 6.8).

    Raises:
        DecodeError, RemoteProtocolError: they have not.
    """
    signers = messages.decode_set(message.signers, party.batch.roster)
    if len(signers) != len(message.signatures):
        raise lie(Phase.CONSISTENCY, "numbers of signers and of signatures differ")
    if not set(signers) <= set(state.survivors):
        raise lie(Phase.CONSISTENCY, "a signer is no survivor")
    if len(signers) < party.batch.threshold:
        raise lie(Phase.CONSISTENCY, "fewer signatures than the threshold")
    body, bound = messages.encode(Consistency(state.key)), statement(party, state)
    for signer, signature in zip(signers, message.signatures, strict=True):
        try:
            signing.check(party.batch, signer, bound, body, signature)
        except CryptoError as error:
            raise lie(Phase.CONSISTENCY, f"client {signer}: {error}") from None


# Round 3: unmasking ----------------------------------------------------------------------------


def unmask(party: Party, state: Masked | Confirmed, survivors: tuple[int, ...]) -> UnmaskShares:
    """Answer one kind of share per active client that any are held of (SPEC 6.4).

    Raises:
        RemoteProtocolError: the survivor set is not acceptable.
    """
    answers = gate(party, state, frozenset(survivors)).values()
    self_shares = tuple(share.value for share in answers if isinstance(share, SelfShare))
    key_shares = tuple(share.value for share in answers if isinstance(share, KeyShare))
    return UnmaskShares(state.key, self_shares, key_shares)


def gate(
    party: Party, state: Masked | Confirmed, survivors: frozenset[int]
) -> dict[int, SelfShare | KeyShare]:
    """The one place that lets shares out: peer -> one share, of the kind its fate calls for.

    The two kinds together would open the peer's input, so a map that holds one value per peer,
    built once per step, is the whole defence (SPEC 6.4).

    Args:
        party: who answers.
        state: the client after its masked input.
        survivors: the announced U3.

    Returns:
        For every active client that shares are held of, in roster order: SelfShare if it
        survived, else KeyShare.

    Raises:
        RemoteProtocolError: see `check_survivors`.
    """
    check_survivors(party, state, survivors)
    return {
        peer: shares.self_mask if peer in survivors else shares.mask_key
        for peer, shares in state.held.items()
    }


def check_survivors(party: Party, state: Masked | Confirmed, survivors: Collection[int]) -> None:
    """Check an announced U3 (SPEC 6.4).

    Raises:
        RemoteProtocolError: it is not within the active set, lacks this client, or is below the
            threshold, or too few of it hold shares of this client's seeds.
    """
    if not set(survivors) <= {*state.held, *state.strangers}:
        raise lie(Phase.UNMASKING, "a survivor was not active")
    if party.client not in survivors:
        raise lie(Phase.UNMASKING, "own masked input was left out")
    if len(survivors) < party.batch.threshold:
        raise lie(Phase.UNMASKING, "fewer survivors than the threshold")
    if sum(u in state.held for u in survivors) < party.batch.share_threshold:
        raise lie(Phase.UNMASKING, "too few surviving neighbours to hold shares")


# Evidence, malicious model ----------------------------------------------------------------------


def unmasked(party: Party, state: Confirmed) -> Unmasked:
    """What is remembered of a step whose shares are out: of whom, and which kind (SPEC 6.10)."""
    given = {
        Kind.SELF_MASK: tuple(u for u in state.held if u in state.survivors),
        Kind.MASK_KEY: tuple(u for u in state.held if u not in state.survivors),
    }
    return Unmasked(state.key, statement(party, state), given)


def give_evidence(
    party: Party, state: Prepared, current: Unmasked, message: EvidenceRequest
) -> ShareEvidence:
    """Prove who dealt shares that have left in this step (SPEC 6.10).

    Raises:
        DecodeError, RemoteProtocolError: the request is of another step, or names a share that
            has not left.
    """
    if message.key != current.key:
        raise lie(Phase.UNMASKING, "evidence of another step")
    asked = {Kind.SELF_MASK: message.self_owners, Kind.MASK_KEY: message.key_owners}
    signatures, paths = [], []
    for kind, bitmap in asked.items():
        for owner in messages.decode_set(bitmap, party.batch.roster):
            if owner not in current.given[kind]:
                raise lie(Phase.UNMASKING, "evidence of a share that was not given")
            dealt = state.dealt[owner]
            signatures.append(dealt.signature)
            paths.append(evidence.path(dealt.leaves, evidence.place(current.key, kind)))
    return ShareEvidence(current.key, tuple(signatures), tuple(paths))


# Session ---------------------------------------------------------------------------------------

_S = TypeVar("_S", Start, Advertised, Drawn, Shared, Prepared)


class ClientSession:
    """One client in one batch: bytes in, bytes out.

    The three offline steps (ring: four, `draw_graph` is the second) are called in order, each once;
    then, for every step of the batch, `masked_input` and `unmask`. Before it does anything a call
    gives up what it is about to use, and stores the next state only when it succeeded: after an
    error offline the session is dead, after an error online the step is, and nothing more leaves
    it (SPEC 6.5).

    Args:
        batch: agreed by all parties beforehand.
        client: own id, a member of the roster.
        entropy: `entropy(k)` gives k fresh secret bytes; os.urandom outside tests.
        identity: own signing key, in the malicious model.
        policy: own bounds; the malicious model needs one.

    Raises:
        LocalProtocolError: the client is not in the roster under this identity, or has no policy.
        PolicyError: the batch is outside the policy; nothing was drawn.
    """

    def __init__(
        self,
        batch: BatchParams,
        client: int,
        entropy: Entropy,
        *,
        identity: SigningKey | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._party = Party(batch, client, identity, policy)
        self._entropy = entropy
        self._state: State = Start()

    def __repr__(self) -> str:
        return f"ClientSession({type(self._state).__name__})"

    def advertise_keys(self) -> bytes:
        """Round 0: the encoded Advertisement."""
        self._take(Start)
        state = preprocessing.advertise_keys(self._party, self._entropy)
        self._state = state
        return state.sent

    def draw_graph(self, commitments: bytes) -> bytes:
        """Draw, ring only: from the encoded NonceCommitments to the encoded Nonce.

        Raises:
            DecodeError, RemoteProtocolError: see `preprocessing.draw_graph`.
            LocalProtocolError: not the step that is due, or the graph is complete.
        """
        state = self._take(Advertised)
        if self._party.batch.ring is None:
            raise LocalProtocolError("the complete graph is not drawn")
        message = messages.decode(commitments, NonceCommitments, self._party.batch)
        self._state, reply = preprocessing.draw_graph(self._party, state, message)
        return messages.encode(reply)

    def share_keys(self, directory: bytes) -> bytes:
        """Round 1: from the encoded KeyDirectory to the encoded ShareBundles.

        On the ring from the encoded RingDirectory, after `draw_graph`.

        Raises:
            DecodeError, RemoteProtocolError: see `preprocessing.share_keys`, `share_on_ring`.
            LocalProtocolError: not the step that is due.
        """
        party = self._party
        if party.batch.ring is None:
            state = self._take(Advertised)
            message = messages.decode(directory, KeyDirectory, party.batch)
            nxt, reply = preprocessing.share_keys(party, state, message)
        else:
            drawn = self._take(Drawn)
            listed = messages.decode(directory, RingDirectory, party.batch)
            nxt, reply = preprocessing.share_on_ring(party, drawn, listed)
        self._state = nxt
        return party.wrap(nxt.off1, reply)

    def open_bundles(self, delivery: bytes) -> bytes | None:
        """After round 1: take in the encoded BundleDelivery.

        Returns:
            An encoded BundleReport if a bundle did not open, None if all is well.

        Raises:
            DecodeError, RemoteProtocolError: see `preprocessing.open_bundles`.
            LocalProtocolError: not the step that is due.
        """
        state = self._take(Shared)
        message = messages.decode(delivery, BundleDelivery, self._party.batch)
        nxt, report = preprocessing.open_bundles(self._party, state, message)
        self._state = nxt
        return None if report is None else self._party.wrap(nxt.off1, report)

    def masked_input(self, request: bytes, task: Task, inputs: Inputs, *, above: int = -1) -> bytes:
        """Round 2: from the encoded StepRequest to the encoded MaskedInput.

        Args:
            request: the server's message. One that is refused costs the keys it names; if it
                cannot be read, the next ones.
            task: what the client takes the step to be, from the broadcast that it saw.
            inputs: section name -> unsigned integers of shape (length,), below 2^bits.
            above: the last step that the client has answered in other batches of the session. Its
                owner knows; a number selects the rounding stream (SPEC 7.3) and is not used twice.

        Raises:
            DecodeError, RemoteProtocolError: see `mask_input`.
            LocalProtocolError: input does not fit, or the offline exchange is not over.
        """
        state = self._take(Prepared)
        state = msgspec.structs.replace(state, last_step=max(state.last_step, above))
        self._state = spend(state, min(state.unused, default=0))
        message = messages.decode(request, StepRequest, self._party.batch)
        self._state = spend(state, message.key)
        nxt, reply, on = mask_input(self._party, state, message, task, inputs)
        self._state = nxt
        return self._party.wrap(on, reply)

    def confirm(self, survivors: bytes) -> bytes:
        """Consistency round: from the encoded SurvivorSet to the encoded Consistency.

        Raises:
            DecodeError, RemoteProtocolError: see `check_survivors`.
            LocalProtocolError: no step waits for it, or this is the semi-honest model.
        """
        state, current = self._current()
        if not self._party.batch.malicious or not isinstance(current, Masked):
            raise LocalProtocolError("no step waits for a survivor set to sign")
        message = messages.decode(survivors, SurvivorSet, self._party.batch)
        nxt = confirm(self._party, current, message)
        self._state = msgspec.structs.replace(state, current=nxt, cohort=nxt.survivors)
        return self._party.wrap(statement(self._party, nxt), Consistency(nxt.key))

    def unmask(self, data: bytes) -> bytes:
        """Round 3: from the encoded SurvivorSet to the encoded UnmaskShares.

        In the malicious model from the encoded ConsistencyProof, after `confirm`.

        Raises:
            DecodeError, RemoteProtocolError: see `check_survivors` and `check_proof`.
            LocalProtocolError: no step waits for it.
        """
        state, current = self._current()
        batch = self._party.batch
        if isinstance(current, Confirmed):
            proof = messages.decode(data, ConsistencyProof, batch)
            check_proof(self._party, current, proof)
            reply = unmask(self._party, current, current.survivors)
            nxt = unmasked(self._party, current)
            self._state = msgspec.structs.replace(state, current=nxt)
            return self._party.wrap(nxt.bound, reply)
        if batch.malicious or not isinstance(current, Masked):
            raise LocalProtocolError("no step waits for unmasking")
        message = messages.decode(data, SurvivorSet, batch)
        survivors = messages.decode_set(message.survivors, batch.roster)
        return messages.encode(unmask(self._party, current, survivors))

    def evidence(self, request: bytes) -> bytes:
        """After a step, malicious model: from the encoded EvidenceRequest to a ShareEvidence.

        Raises:
            DecodeError, RemoteProtocolError: see `give_evidence`.
            LocalProtocolError: no shares of a step are out, or the evidence is.
        """
        state, current = self._current()
        if not isinstance(current, Unmasked):
            raise LocalProtocolError("no step waits for evidence")
        message = messages.decode(request, EvidenceRequest, self._party.batch)
        reply = give_evidence(self._party, state, current, message)
        return self._party.wrap(current.bound, reply)

    def end(self) -> None:
        """Give up the batch and erase what is left of it: a new batch began, the roster changed."""
        self._state = Ended()

    @property
    def state(self) -> State:
        """The whole state, secrets included; for whoever stores it (SPEC 6.7)."""
        return self._state

    @classmethod
    def resume(cls, party: Party, state: State, entropy: Entropy) -> ClientSession:
        """A session that goes on where a stored one stopped."""
        session = cls(
            party.batch, party.client, entropy, identity=party.identity, policy=party.policy
        )
        session._state = state
        return session

    def _current(self) -> tuple[Prepared, Masked | Confirmed | Unmasked | None]:
        """Take the running step out of the state: whatever fails now ends it."""
        state = self._take(Prepared)
        self._state = msgspec.structs.replace(state, current=None)
        return state, state.current

    def _take(self, kind: type[_S]) -> _S:
        state, self._state = self._state, Failed()
        if not isinstance(state, kind):
            raise LocalProtocolError(f"this step needs {kind.__name__}, not {type(state).__name__}")
        return state
