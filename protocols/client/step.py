"""The client's side of one step: masking, consistency, unmasking (SPEC 6.3 to 6.8).

    Prepared -> Masked (malicious: -> Confirmed) -> Prepared

Each transition takes the state and the server's message and gives a `Move`. It trusts nothing in
the message: a request that breaks a rule raises, and the session has already given up the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocols import context, masking, messages, pairs, signing
from protocols.client.states import (
    Confirmed,
    KeyShare,
    Masked,
    Move,
    Party,
    Prepared,
    SelfShare,
    server_fault,
)
from protocols.errors import CryptoError, LocalProtocolError, RemoteProtocolError
from protocols.graph import Clients
from protocols.messages import (
    Consistency,
    ConsistencyProof,
    MaskedInput,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.params import BatchParams, Task
from protocols.phases import Phase
from protocols.primitives.keys import KeyPair
from protocols.primitives.packing import pack

Inputs = Mapping[str, NDArray[np.unsignedinteger]]
"""Section name -> unsigned integers, shape (length,), each 0..maximum of the section."""
Compute = Callable[[], Inputs]
"""Computes the inputs. It is called after every check that can refuse the step (SPEC 6.3)."""


# Round 2: masked input -------------------------------------------------------------------------


def mask_input(
    party: Party, state: Prepared, request: StepRequest, task: Task, inputs: Inputs | Compute
) -> Move:
    """Mask the input with the keys of one step, over the active set (SPEC 6.3).

    Everything that can refuse the step comes before the inputs are computed: whether a client
    answers must not depend on private data.

    Raises:
        LocalProtocolError: the input does not fit the task.
        PolicyError: the task is outside the policy.
        DecodeError, RemoteProtocolError: the request is not acceptable.
    """
    if party.policy is not None:
        party.policy.check_task(task)
    active = messages.decode_set(request.active, party.batch.roster)
    peers = _checked_lost(party, request, active)
    lost = peers.get(party.client, frozenset())
    _check_active(party, state, request.key, active, lost)
    _check_others(party, active, peers)
    if task.step <= state.last_step:
        raise server_fault(Phase.MASKED_INPUT, "step number does not grow")
    keys = state.unused[request.key]
    on = context.online(
        state.off1, request.key, task, party.batch.n, request.active, lost=request.lost
    )
    own = masking.mask_key_pair(keys.seeds.mask_key, party.client, request.key, party.off0)
    pair_keys = {
        peer: _pair_key(party, own, peer, state.mask_keys[peer][request.key], on)
        for peer in active
        if peer in state.mask_keys and peer not in lost
    }
    vectors = _checked_inputs(task, inputs() if callable(inputs) else inputs)
    total = masking.MaskedSum(task, party.batch.n, vectors)
    total.add(masking.self_mask_key(keys.seeds.self_mask, party.client, on), 1)
    for peer, key in pair_keys.items():
        total.add(key, masking.pair_sign(party.client, peer))
    fields = task.fields(party.batch.n)
    packed = tuple(pack(v, field.bits) for v, field in zip(total.reduced(), fields, strict=True))
    held = {u: keys.held[u] for u in active if u in keys.held and u not in lost}
    others = tuple(u for u in active if u not in held)
    current = Masked(request.key, on, held, others, _kept(state.chosen, active, lost))
    left = spend(state, request.key)
    nxt = msgspec.structs.replace(left, current=current, last_step=task.step, cohort=active)
    return Move(nxt, MaskedInput(request.key, packed), on)


def spend(state: Prepared, key: int) -> Prepared:
    """Erase the keys of a step and of all steps before it, and end the running step (SPEC 3.9)."""
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


def _checked_lost(party: Party, request: StepRequest, active: Clients) -> dict[int, frozenset[int]]:
    """Return client -> the peers that it has lost, after the checks of SPEC 5.5 and 6.3."""
    lost = pairs.decode(request.lost, party.batch.roster)
    if not {u for pair in lost for u in pair} <= set(active):
        raise server_fault(Phase.MASKED_INPUT, "a lost pair is not active")
    return pairs.peers(lost)


def _check_others(party: Party, active: Clients, lost: Mapping[int, frozenset[int]]) -> None:
    """Complete graph: check that every active client keeps enough holders (SPEC 6.3).

    The server has to leave out those that do not. If it cut one off and listed it all the same, the
    sum would lack a client that all others believe to be in it: rules on cohorts would see no
    difference between two sums that differ by one client (SPEC 1.6, 8.1).
    """
    least = party.batch.share_threshold
    if party.batch.graph == "complete" and any(
        len(active) - len(others) < least for others in lost.values()
    ):
        raise server_fault(Phase.MASKED_INPUT, "lost pairs leave an active client too few holders")


def _check_active(
    party: Party, state: Prepared, key: int, active: Clients, lost: frozenset[int]
) -> None:
    """Make every check of SPEC 6.3 on an active set in which this client has lost some peers."""
    if key not in state.unused:
        raise server_fault(Phase.MASKED_INPUT, "keys of this step are spent or were never made")
    if len(active) < party.batch.threshold:
        raise server_fault(Phase.MASKED_INPUT, "active set below the threshold")
    if party.client not in active:
        raise server_fault(Phase.MASKED_INPUT, "own id is not in the active set")
    held = state.unused[key].held
    holders = state.chosen or tuple(held)
    if not set(active) - lost <= {*held, *state.non_neighbours}:
        raise server_fault(Phase.MASKED_INPUT, "active client whose bundle was never opened")
    # With fewer, a server that breaks pairs could cut the honest clients in two (SPEC 1.6).
    if len(_kept(holders, active, lost)) < party.batch.share_threshold:
        raise server_fault(Phase.MASKED_INPUT, "too few active neighbours to hold shares")
    # Two sums whose cohorts differ by one client reveal its input (SPEC 8.1). So a lying server
    # must not take a client out of one step and back into the next.
    shrinking = party.policy is not None and not party.policy.rejoin
    if shrinking and state.cohort is not None and not set(active) <= set(state.cohort):
        raise server_fault(Phase.MASKED_INPUT, "a client that missed the last step is active again")


def _kept(clients: Clients, active: Clients, lost: frozenset[int]) -> Clients:
    """Return the clients that are active and not lost."""
    present = frozenset(active) - lost
    return tuple(u for u in clients if u in present)


def _pair_key(party: Party, own: KeyPair, peer: int, public: bytes, on: bytes) -> bytes:
    try:
        return masking.pair_mask_key(own, party.client, peer, public, on)
    except CryptoError as error:
        raise RemoteProtocolError(peer, Phase.MASKED_INPUT, str(error)) from None


# Consistency, malicious model ------------------------------------------------------------------


def confirm(party: Party, state: Prepared, current: Masked, message: SurvivorSet) -> Move:
    """Sign one survivor set. The client signs no other one in this step (SPEC 6.8).

    Raises:
        DecodeError, RemoteProtocolError: the survivor set is not acceptable.
    """
    survivors = messages.decode_set(message.survivors, party.batch.roster)
    check_survivors(party, current, survivors)
    signed = Confirmed(
        current.key,
        current.on,
        current.held,
        survivors,
        current.non_neighbours,
        current.chosen,
    )
    nxt = msgspec.structs.replace(state, current=signed, cohort=signed.survivors)
    return Move(nxt, Consistency(current.key), statement(party.batch, signed))


def statement(batch: BatchParams, current: Confirmed) -> bytes:
    """Return the context that binds a signature to this step and this survivor set."""
    bitmap = messages.encode_set(current.survivors, batch.roster)
    return context.survivors(current.on, bitmap)


def check_proof(batch: BatchParams, current: Confirmed, message: ConsistencyProof) -> None:
    """Check that enough clients of U3 have signed the same U3 (SPEC 6.8).

    That is t of all; on the chosen graph, in a step, τ of those that hold this client's shares.

    Raises:
        DecodeError, RemoteProtocolError: they have not.
    """
    signers = messages.decode_set(message.signers, batch.roster)
    if len(signers) != len(message.signatures):
        raise server_fault(Phase.CONSISTENCY, "numbers of signers and of signatures differ")
    if not set(signers) <= set(current.survivors):
        raise server_fault(Phase.CONSISTENCY, "a signer is no survivor")
    if current.chosen and not set(signers) <= set(current.chosen):
        raise server_fault(Phase.CONSISTENCY, "a signer holds no shares of this client")
    needed = batch.share_threshold if current.chosen else batch.threshold
    if len(signers) < needed:
        raise server_fault(Phase.CONSISTENCY, "fewer signatures than the threshold")
    body, bound = messages.encode(Consistency(current.key)), statement(batch, current)
    for signer, signature in zip(signers, message.signatures, strict=True):
        try:
            signing.check(batch, signer, bound, body, signature)
        except CryptoError as error:
            raise server_fault(Phase.CONSISTENCY, f"client {signer}: {error}") from None


# Round 3: unmasking ----------------------------------------------------------------------------


def unmask(party: Party, state: Prepared, current: Masked, message: SurvivorSet) -> Move:
    """Semi-honest model: answer the survivor set with shares. The step is over (SPEC 6.4).

    Raises:
        DecodeError, RemoteProtocolError: the survivor set is not acceptable.
    """
    survivors = messages.decode_set(message.survivors, party.batch.roster)
    reply = _shares(party, current, survivors)
    return Move(msgspec.structs.replace(state, current=None), reply, current.on)


def unmask_confirmed(
    party: Party, state: Prepared, current: Confirmed, message: ConsistencyProof
) -> Move:
    """Malicious model: answer enough signatures on the own survivor set with shares (SPEC 6.4).

    Raises:
        DecodeError, RemoteProtocolError: the proof is not acceptable.
    """
    check_proof(party.batch, current, message)
    reply = _shares(party, current, current.survivors)
    bound = statement(party.batch, current)
    return Move(msgspec.structs.replace(state, current=None), reply, bound)


def _shares(party: Party, current: Masked | Confirmed, survivors: Clients) -> UnmaskShares:
    answers = gate(party, current, frozenset(survivors)).values()
    self_shares = tuple(share.value for share in answers if isinstance(share, SelfShare))
    key_shares = tuple(share.value for share in answers if isinstance(share, KeyShare))
    return UnmaskShares(current.key, self_shares, key_shares)


def gate(
    party: Party, current: Masked | Confirmed, survivors: frozenset[int]
) -> dict[int, SelfShare | KeyShare]:
    """Choose the shares that leave the client. This is the only place that lets shares out.

    Whoever gets both kinds of share of one peer can open the peer's input. So the result holds one
    value per peer, and a client makes it once per step (SPEC 6.4).

    Args:
        party: the client that answers.
        current: its step, after the masked input.
        survivors: the announced U3.

    Returns:
        For every active client of which shares are held, in roster order: a SelfShare if it
        survived, else a KeyShare.

    Raises:
        RemoteProtocolError: see `check_survivors`.
    """
    check_survivors(party, current, survivors)
    return {
        peer: shares.self_mask if peer in survivors else shares.mask_key
        for peer, shares in current.held.items()
    }


def check_survivors(party: Party, current: Masked | Confirmed, survivors: Collection[int]) -> None:
    """Check an announced U3 (SPEC 6.4).

    Raises:
        RemoteProtocolError: it is not within the active set, lacks this client, or is below the
            threshold, or too few of its members hold shares of this client's seeds.
    """
    if not set(survivors) <= {*current.held, *current.non_neighbours}:
        raise server_fault(Phase.UNMASKING, "a survivor was not active")
    if party.client not in survivors:
        raise server_fault(Phase.UNMASKING, "own masked input was left out")
    if len(survivors) < party.batch.threshold:
        raise server_fault(Phase.UNMASKING, "fewer survivors than the threshold")
    if len(_holders(current).intersection(survivors)) < party.batch.share_threshold:
        raise server_fault(Phase.UNMASKING, "too few surviving neighbours to hold shares")


def _holders(current: Masked | Confirmed) -> frozenset[int]:
    """Return the active clients that hold shares of this client's seeds (SPEC 1.4)."""
    return frozenset(current.chosen or current.held)
