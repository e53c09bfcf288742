"""What a client checks of the directories of keys, one kind for each graph (SPEC 6.2, 6.9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from protocols import context, messages, signing
from protocols.client.states import Advertised, Drawn, Party, server_fault
from protocols.errors import CryptoError, DecodeError
from protocols.graph import Clients, choices, least_on_ring
from protocols.messages import (
    Advertisement,
    ChosenAdvertisement,
    ChosenDirectory,
    KeyDirectory,
    RingAdvertisement,
    RingDirectory,
    keys_repeat,
)
from protocols.params import BatchParams
from protocols.phases import Phase

_A = TypeVar("_A", bound=Advertisement)


def checked_directory(
    party: Party, state: Advertised, message: KeyDirectory
) -> dict[int, Advertisement]:
    """Return client -> advertisement of U1, after every check of SPEC 6.2."""
    batch = party.batch
    members = messages.decode_set(message.members, batch.roster)
    _check_number(batch, members)
    if len(members) != len(message.advertisements):
        raise server_fault(Phase.SHARE_KEYS, "numbers of advertisements and of members differ")
    listed = dict(zip(members, message.advertisements, strict=True))
    if listed.get(party.client) != state.sent:
        raise server_fault(Phase.SHARE_KEYS, "own keys missing or changed")
    if party.policy is not None:
        party.policy.check_members(batch, len(members))
    directory = {u: advertisement(party, u, data, Advertisement) for u, data in listed.items()}
    _check_mask_keys(batch, directory)
    # One key in two places would let a server pass one client off as another.
    if keys_repeat(directory.values()):
        raise server_fault(Phase.SHARE_KEYS, "keys repeat")
    return directory


def checked_nonces(party: Party, state: Drawn, message: RingDirectory) -> dict[int, bytes]:
    """Return client -> nonce of U1, after the checks of SPEC 6.9."""
    batch = party.batch
    members = messages.decode_set(message.members, batch.roster)
    if len(members) < least_on_ring(batch):
        raise server_fault(Phase.SHARE_KEYS, "fewer nonces than the threshold")
    if len(members) != len(message.nonces):
        raise server_fault(Phase.SHARE_KEYS, "numbers of nonces and of members differ")
    if party.client not in members:
        raise server_fault(Phase.SHARE_KEYS, "own nonce missing")
    if party.policy is not None:
        party.policy.check_members(batch, len(members))
    nonces = dict(zip(members, message.nonces, strict=True))
    shown = context.nonce_commitments(party.off0, nonces)
    # A nonce chosen after the others were known would let one party choose the ring.
    if any(state.committed.get(u) != commitment for u, commitment in shown.items()):
        raise server_fault(Phase.SHARE_KEYS, "a nonce that nobody committed to")
    return nonces


def ring_advertisement(party: Party, state: Drawn, client: int, data: bytes) -> RingAdvertisement:
    """Return a neighbour's advertisement, after the checks of SPEC 6.9."""
    message = advertisement(party, client, data, RingAdvertisement)
    if message.nonce_commitment != state.committed[client]:
        raise server_fault(Phase.SHARE_KEYS, "advertisement of another client than the neighbour")
    if len(message.mask_keys) != party.batch.steps:
        raise server_fault(Phase.SHARE_KEYS, "wrong number of mask keys")
    return message


def _check_number(batch: BatchParams, members: Clients) -> None:
    if len(members) < batch.threshold:
        raise server_fault(Phase.SHARE_KEYS, "fewer keys than the threshold")


def _check_mask_keys(batch: BatchParams, directory: Mapping[int, Advertisement]) -> None:
    if any(len(keys.mask_keys) != batch.steps for keys in directory.values()):
        raise server_fault(Phase.SHARE_KEYS, "wrong number of mask keys")


def advertisement(party: Party, client: int, data: bytes, kind: type[_A]) -> _A:
    """Return an advertisement of some kind whose signature is its sender's (SPEC 3.11).

    Raises:
        DecodeError: it is malformed, or of another kind.
        RemoteProtocolError: the signature is not valid.
    """
    message, body, signature = signing.unwrap(data, party.batch)
    if not isinstance(message, kind):
        raise DecodeError(f"not a message of kind {kind.__name__}")
    try:
        signing.check(party.batch, client, party.off0, body, signature)
    except CryptoError as error:
        raise server_fault(Phase.SHARE_KEYS, str(error)) from None
    return message


def checked_members(party: Party, message: ChosenDirectory) -> tuple[Clients, Clients]:
    """Return U1 and the neighbours that a directory names, after the checks on their numbers."""
    batch = party.batch
    members = messages.decode_set(message.members, batch.roster)
    neighbours = messages.decode_set(message.neighbours, batch.roster)
    _check_number(batch, members)
    if party.client not in members:
        raise server_fault(Phase.SHARE_KEYS, "own keys missing or changed")
    if not set(neighbours) <= set(members) - {party.client}:
        raise server_fault(Phase.SHARE_KEYS, "a neighbour advertised no keys")
    if len(neighbours) != len(message.advertisements):
        raise server_fault(Phase.SHARE_KEYS, "numbers of advertisements and of neighbours differ")
    if party.policy is not None:
        party.policy.check_members(batch, len(members))
    return members, neighbours


def checked_choices(
    party: Party, directory: Mapping[int, ChosenAdvertisement], chosen: Clients
) -> frozenset[int]:
    """Return the neighbours that chose this client, after the checks on all lists (SPEC 6.2)."""
    batch, graph = party.batch, party.batch.chosen
    if graph is None:
        raise server_fault(Phase.SHARE_KEYS, "no graph that clients choose")
    if not set(chosen) <= set(directory):
        raise server_fault(Phase.SHARE_KEYS, "a client that was chosen is no neighbour")
    # Nothing that the server does later may leave this client with fewer (SPEC 1.6).
    if len(chosen) < graph.threshold:
        raise server_fault(Phase.SHARE_KEYS, "too few of the chosen advertised keys")
    lists = {u: choices(batch, u, keys) for u, keys in directory.items()}
    _check_mask_keys(batch, directory)
    choosers = frozenset(u for u, found in lists.items() if party.client in found)
    if not set(directory) <= choosers.union(chosen):
        raise server_fault(Phase.SHARE_KEYS, "a neighbour that neither chose nor was chosen")
    # This bounds what a client computes and downloads, whoever chooses it (SPEC 8.8).
    if len(choosers) > graph.most_choosers:
        raise server_fault(Phase.SHARE_KEYS, "chosen by too many clients")
    return choosers
