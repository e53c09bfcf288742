"""The client: one state and one transition function per round (SPEC 6).

    Start -> Advertised -> Shared -> Masked -> Done        (any error: Failed)

A transition takes the state and the server's message and returns the next state and the reply.
`ClientSession` carries bytes in and out and makes sure that no step runs twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocols import context, masking, messages, shamir
from protocols.context import u64
from protocols.errors import CryptoError, DecodeError, LocalProtocolError, RemoteProtocolError
from protocols.graph import complete
from protocols.keys import KEY_SIZE, Entropy, KeyPair, draw, frame, hkdf, seal, unseal
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    KeyDirectory,
    MaskedInput,
    ShareBundles,
    SurvivorSet,
    UnmaskShares,
)
from protocols.packing import pack
from protocols.params import AggregationParams, Phase

Inputs = Mapping[str, NDArray[np.unsignedinteger]]


@dataclass(frozen=True, slots=True)
class SelfShare:
    """A share of a survivor's self-mask seed."""

    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyShare:
    """A share of a dropped client's mask-key seed."""

    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class HeldShares:
    """Both shares this client holds of one peer; at most one of them ever leaves."""

    mask_key: KeyShare
    self_mask: SelfShare


@dataclass(frozen=True, slots=True)
class Start:
    """Nothing sent yet."""

    params: AggregationParams
    client: int


@dataclass(frozen=True, slots=True)
class Advertised:
    """Own keys are out; waiting for the directory."""

    params: AggregationParams
    client: int
    off0: bytes
    channel: KeyPair
    mask: KeyPair
    mask_seed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Shared:
    """Bundles are out, the channel secrets gone; waiting for the peers' bundles."""

    params: AggregationParams
    client: int
    off1: bytes
    mask: KeyPair
    peer_mask_keys: Mapping[int, bytes]
    self_seed: bytes = field(repr=False)
    own_shares: HeldShares
    inbound_keys: Mapping[int, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Masked:
    """The masked input is out, own secrets gone; waiting for the survivor set."""

    params: AggregationParams
    client: int
    held: Mapping[int, HeldShares]


@dataclass(frozen=True, slots=True)
class Done:
    """Shares are out. Nothing secret is left."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A step failed or was called out of order; no step will run again."""


State = Start | Advertised | Shared | Masked | Done | Failed


# Round 0: advertise keys -----------------------------------------------------------------------


def advertise_keys(state: Start, entropy: Entropy) -> tuple[Advertised, Advertisement]:
    """Draw the channel key and the seed of the mask key (SPEC 6.1)."""
    off0 = context.offline(state.params)
    channel = KeyPair.from_private_bytes(draw(entropy, KEY_SIZE))
    seed = shamir.draw_element(entropy)
    mask = masking.mask_key_pair(seed, state.client, off0)
    nxt = Advertised(state.params, state.client, off0, channel, mask, seed)
    return nxt, Advertisement(channel.public, mask.public)


# Round 1: share keys ---------------------------------------------------------------------------


def share_keys(
    state: Advertised, message: KeyDirectory, entropy: Entropy
) -> tuple[Shared, ShareBundles]:
    """Share both seeds with every member of U1, itself included (SPEC 6.2).

    Raises:
        DecodeError, RemoteProtocolError: the directory is not acceptable.
    """
    directory = _checked_directory(state, message)
    keys = ((u, *pair) for u, pair in directory.items())
    off1 = context.advertised(state.off0, keys)
    self_seed = shamir.draw_element(entropy)
    held = _split_secrets(state, tuple(directory), self_seed, entropy)
    peers = complete(state.client, tuple(directory))
    secrets = {v: _agree(state.channel, v, directory[v][0]) for v in peers}
    step = state.params.step
    bundles = tuple(
        _seal_bundle(secrets[v], held[v], off1, step, sender=state.client, recipient=v)
        for v in peers
    )
    inbound = {v: _bundle_key(secrets[v], off1, step, v, state.client) for v in peers}
    mask_keys = {v: directory[v][1] for v in peers}
    own = held[state.client]
    nxt = Shared(state.params, state.client, off1, state.mask, mask_keys, self_seed, own, inbound)
    return nxt, ShareBundles(bundles)


def _checked_directory(state: Advertised, message: KeyDirectory) -> dict[int, tuple[bytes, bytes]]:
    """Client -> (channel key, mask key) of U1, after every check of SPEC 6.2."""
    members = messages.decode_set(message.members, state.params.roster)
    if len(members) < state.params.threshold:
        raise _lie(Phase.SHARE_KEYS, "fewer keys than the threshold")
    if not len(members) == len(message.channel_keys) == len(message.mask_keys):
        raise _lie(Phase.SHARE_KEYS, "numbers of keys and of members differ")
    if len({*message.channel_keys, *message.mask_keys}) != 2 * len(members):
        raise _lie(Phase.SHARE_KEYS, "keys repeat")
    pairs = zip(message.channel_keys, message.mask_keys, strict=True)
    directory = dict(zip(members, pairs, strict=True))
    if directory.get(state.client) != (state.channel.public, state.mask.public):
        raise _lie(Phase.SHARE_KEYS, "own keys missing or changed")
    return directory


def _split_secrets(
    state: Advertised, members: tuple[int, ...], self_seed: bytes, entropy: Entropy
) -> dict[int, HeldShares]:
    """Member -> its shares of the mask-key seed and of the self-mask seed."""
    params = state.params
    points = share_points(params)
    xs = [points[member] for member in members]
    mask_key = shamir.split(state.mask_seed, params.threshold, xs, entropy)
    self_mask = shamir.split(self_seed, params.threshold, xs, entropy)
    return {
        member: HeldShares(KeyShare(mask_key[x]), SelfShare(self_mask[x]))
        for member, x in zip(members, xs, strict=True)
    }


def share_points(params: AggregationParams) -> dict[int, int]:
    """Client -> Shamir x: roster index + 1, whoever is missing from U1 (SPEC 3.6)."""
    return {client: index + 1 for index, client in enumerate(params.roster)}


def _agree(channel: KeyPair, peer: int, peer_key: bytes) -> bytes:
    try:
        return channel.agree(peer_key)
    except CryptoError as error:
        raise RemoteProtocolError(peer, Phase.SHARE_KEYS, str(error)) from None


def _bundle_key(secret: bytes, off1: bytes, step: int, sender: int, recipient: int) -> bytes:
    return hkdf(secret, "bundle", off1, u64(step), u64(sender), u64(recipient))


def _bundle_associated(off1: bytes, step: int, sender: int, recipient: int) -> bytes:
    return frame(b"bundle", off1, u64(step), u64(sender), u64(recipient))


def _seal_bundle(
    secret: bytes, shares: HeldShares, off1: bytes, step: int, *, sender: int, recipient: int
) -> bytes:
    key = _bundle_key(secret, off1, step, sender, recipient)
    plaintext = shares.mask_key.value + shares.self_mask.value
    return seal(key, plaintext, _bundle_associated(off1, step, sender, recipient))


# Round 2: masked input collection --------------------------------------------------------------


def mask_input(
    state: Shared, message: BundleDelivery, inputs: Inputs
) -> tuple[Masked, MaskedInput]:
    """Open every bundle of U2, then mask the input (SPEC 6.3).

    Raises:
        LocalProtocolError: the input does not fit the parameters.
        DecodeError, RemoteProtocolError: the delivery is not acceptable.
    """
    vectors = _checked_inputs(state.params, inputs)
    held = _open_bundles(state, message)
    on = context.online(state.off1, state.params, message.sharers)
    total = masking.MaskedSum(state.params, vectors)
    total.add(masking.self_mask_key(state.self_seed, state.client, on), 1)
    for peer in complete(state.client, tuple(held)):
        key = _pair_key(state, peer, on)
        total.add(key, masking.pair_sign(state.client, peer))
    packed = tuple(
        pack(vector, state.params.field(section).bits)
        for vector, section in zip(total.reduced(), state.params.sections, strict=True)
    )
    return Masked(state.params, state.client, held), MaskedInput(packed)


def _checked_inputs(params: AggregationParams, inputs: Inputs) -> list[NDArray[np.unsignedinteger]]:
    if set(inputs) != {section.name for section in params.sections}:
        raise LocalProtocolError("input sections are not those of the parameters")
    for section in params.sections:
        vector = inputs[section.name]
        if vector.shape != (section.length,) or vector.dtype.kind != "u":
            raise LocalProtocolError(f"section {section.name!r}: wrong shape or dtype")
        if int(vector.max()) >> section.bits:
            raise LocalProtocolError(f"section {section.name!r}: an entry is out of range")
    return [inputs[section.name] for section in params.sections]


def _open_bundles(state: Shared, message: BundleDelivery) -> dict[int, HeldShares]:
    """Member of U2 -> shares held of it, after every check of SPEC 6.3."""
    active = messages.decode_set(message.sharers, state.params.roster)
    if len(active) < state.params.threshold:
        raise _lie(Phase.MASKED_INPUT, "fewer sharers than the threshold")
    if state.client not in active:
        raise _lie(Phase.MASKED_INPUT, "own bundles missing")
    if not set(active) <= {state.client, *state.inbound_keys}:
        raise _lie(Phase.MASKED_INPUT, "a sharer advertised no keys")
    peers = complete(state.client, active)
    if len(peers) != len(message.bundles):
        raise _lie(Phase.MASKED_INPUT, "numbers of bundles and of sharers differ")
    sealed = dict(zip(peers, message.bundles, strict=True))
    return {
        u: state.own_shares if u == state.client else _open_bundle(state, u, sealed[u])
        for u in active
    }


def _open_bundle(state: Shared, sender: int, sealed: bytes) -> HeldShares:
    associated = _bundle_associated(state.off1, state.params.step, sender, state.client)
    try:
        plaintext = unseal(state.inbound_keys[sender], sealed, associated)
        shares = plaintext[: shamir.SIZE], plaintext[shamir.SIZE :]
        for share in shares:
            shamir.decode_element(share)
    except (CryptoError, DecodeError):
        raise RemoteProtocolError(sender, Phase.MASKED_INPUT, "bundle does not open") from None
    return HeldShares(KeyShare(shares[0]), SelfShare(shares[1]))


def _pair_key(state: Shared, peer: int, on: bytes) -> bytes:
    public = state.peer_mask_keys[peer]
    try:
        return masking.pair_mask_key(state.mask, state.client, peer, public, on)
    except CryptoError as error:
        raise RemoteProtocolError(peer, Phase.MASKED_INPUT, str(error)) from None


# Round 3: unmasking ----------------------------------------------------------------------------


def unmask(state: Masked, message: SurvivorSet) -> tuple[Done, UnmaskShares]:
    """Answer one kind of share per member of U2 (SPEC 6.4).

    Raises:
        DecodeError, RemoteProtocolError: the survivor set is not acceptable.
    """
    survivors = messages.decode_set(message.survivors, state.params.roster)
    answers = gate(state, frozenset(survivors)).values()
    self_shares = tuple(share.value for share in answers if isinstance(share, SelfShare))
    key_shares = tuple(share.value for share in answers if isinstance(share, KeyShare))
    return Done(), UnmaskShares(self_shares, key_shares)


def gate(state: Masked, survivors: frozenset[int]) -> dict[int, SelfShare | KeyShare]:
    """The one place that lets shares out: peer -> one share, of the kind its fate calls for.

    The two kinds together would open the peer's input, so a map that holds one value per peer,
    built once per aggregation, is the whole defence (SPEC 6.4).

    Args:
        state: the client after its masked input.
        survivors: the announced U3.

    Returns:
        For every member of U2 in roster order: SelfShare if it survived, else KeyShare.

    Raises:
        RemoteProtocolError: U3 is not within U2, lacks this client, or is below the threshold.
    """
    if not survivors <= set(state.held):
        raise _lie(Phase.UNMASKING, "a survivor never shared keys")
    if state.client not in survivors:
        raise _lie(Phase.UNMASKING, "own masked input was left out")
    if len(survivors) < state.params.threshold:
        raise _lie(Phase.UNMASKING, "fewer survivors than the threshold")
    return {
        peer: shares.self_mask if peer in survivors else shares.mask_key
        for peer, shares in state.held.items()
    }


def _lie(phase: Phase, message: str) -> RemoteProtocolError:
    return RemoteProtocolError(None, phase, message)


# Session ---------------------------------------------------------------------------------------

_S = TypeVar("_S", Start, Advertised, Shared, Masked)


class ClientSession:
    """One client in one aggregation: bytes in, bytes out.

    The four steps are called in order, each once. A step first marks the session failed and
    stores the next state only when it succeeded, so after any error, repetition or call out of
    order nothing more leaves this object (SPEC 6.5).

    Args:
        params: agreed by all parties beforehand.
        client: own id, a member of the roster.
        entropy: `entropy(k)` gives k fresh secret bytes; os.urandom outside tests.

    Raises:
        LocalProtocolError: the client is not in the roster.
    """

    def __init__(self, params: AggregationParams, client: int, entropy: Entropy) -> None:
        if client not in params.roster:
            raise LocalProtocolError(f"client {client} is not in the roster")
        self._params = params
        self._entropy = entropy
        self._state: State = Start(params, client)

    def __repr__(self) -> str:
        return f"ClientSession({type(self._state).__name__})"

    def advertise_keys(self) -> bytes:
        """Round 0: the encoded Advertisement."""
        state = self._take(Start)
        self._state, reply = advertise_keys(state, self._entropy)
        return messages.encode(reply)

    def share_keys(self, directory: bytes) -> bytes:
        """Round 1: from the encoded KeyDirectory to the encoded ShareBundles.

        Raises:
            DecodeError, RemoteProtocolError: see `share_keys`.
            LocalProtocolError: not the step that is due.
        """
        state = self._take(Advertised)
        message = messages.decode(directory, KeyDirectory, self._params)
        self._state, reply = share_keys(state, message, self._entropy)
        return messages.encode(reply)

    def masked_input(self, delivery: bytes, inputs: Inputs) -> bytes:
        """Round 2: from the encoded BundleDelivery to the encoded MaskedInput.

        Args:
            delivery: the server's message.
            inputs: section name -> unsigned integers of shape (length,), below 2^bits.

        Raises:
            DecodeError, RemoteProtocolError: see `mask_input`.
            LocalProtocolError: input does not fit, or not the step that is due.
        """
        state = self._take(Shared)
        message = messages.decode(delivery, BundleDelivery, self._params)
        self._state, reply = mask_input(state, message, inputs)
        return messages.encode(reply)

    def unmask(self, survivors: bytes) -> bytes:
        """Round 3: from the encoded SurvivorSet to the encoded UnmaskShares.

        Raises:
            DecodeError, RemoteProtocolError: see `gate`.
            LocalProtocolError: not the step that is due.
        """
        state = self._take(Masked)
        message = messages.decode(survivors, SurvivorSet, self._params)
        self._state, reply = unmask(state, message)
        return messages.encode(reply)

    def _take(self, kind: type[_S]) -> _S:
        state, self._state = self._state, Failed()
        if not isinstance(state, kind):
            raise LocalProtocolError(f"this step needs {kind.__name__}, not {type(state).__name__}")
        return state
