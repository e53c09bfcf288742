"""The server: one state per round, one function for an arrival, one for the round's end (SPEC 6).

    CollectingKeys -> CollectingBundles -> CollectingInputs -> CollectingShares -> Finished

Masked inputs are added as they arrive, so memory holds one running sum and no client's vector
(SPEC 6.3). Ending a round fixes who took part in it; anything late is discarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from protocols import context, masking, messages, shamir
from protocols.client import share_points
from protocols.errors import (
    DecodeError,
    LocalProtocolError,
    NotEnoughSurvivors,
    RemoteProtocolError,
)
from protocols.graph import complete
from protocols.messages import (
    UPLOADS,
    Advertisement,
    BundleDelivery,
    KeyDirectory,
    MaskedInput,
    Message,
    ShareBundles,
    SurvivorSet,
    UnmaskShares,
)
from protocols.packing import unpack
from protocols.params import AggregationParams, Phase

Vectors = tuple[NDArray[np.uint32], ...]


@dataclass(frozen=True, slots=True)
class CollectingKeys:
    """Round 0: advertisements by client."""

    params: AggregationParams
    received: Mapping[int, Advertisement]


@dataclass(frozen=True, slots=True)
class CollectingBundles:
    """Round 1: bundles by sender, then recipient."""

    params: AggregationParams
    off1: bytes
    mask_keys: Mapping[int, bytes]
    received: Mapping[int, Mapping[int, bytes]]


@dataclass(frozen=True, slots=True)
class CollectingInputs:
    """Round 2: the running sum and who is in it."""

    params: AggregationParams
    on: bytes
    mask_keys: Mapping[int, bytes]
    received: frozenset[int]
    totals: Vectors = field(repr=False)


@dataclass(frozen=True, slots=True)
class CollectingShares:
    """Round 3: the masked sum over the survivors, and their shares by client."""

    params: AggregationParams
    on: bytes
    mask_keys: Mapping[int, bytes]
    survivors: tuple[int, ...]
    totals: Vectors = field(repr=False)
    received: Mapping[int, UnmaskShares]

    @property
    def dropped(self) -> tuple[int, ...]:
        """U2 without U3: shared keys, sent no masked input."""
        return tuple(u for u in self.mask_keys if u not in self.survivors)


@dataclass(frozen=True, slots=True)
class Finished:
    """The sum of the survivors' inputs."""

    totals: Mapping[str, NDArray[np.uint32]] = field(repr=False)
    survivors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The aggregation failed and stays failed."""


Collecting = CollectingKeys | CollectingBundles | CollectingInputs | CollectingShares
State = Collecting | Finished | Failed

_PHASES: dict[type[Collecting], Phase] = {
    CollectingKeys: Phase.ADVERTISE_KEYS,
    CollectingBundles: Phase.SHARE_KEYS,
    CollectingInputs: Phase.MASKED_INPUT,
    CollectingShares: Phase.UNMASKING,
}


# Round 0: advertise keys -----------------------------------------------------------------------


def receive_keys(state: CollectingKeys, client: int, message: Advertisement) -> CollectingKeys:
    """Record a client's keys (SPEC 6.1)."""
    _check_sender(client, state.params.roster, state.received, Phase.ADVERTISE_KEYS)
    return CollectingKeys(state.params, {**state.received, client: message})


def end_keys(state: CollectingKeys) -> tuple[CollectingBundles, dict[int, Message]]:
    """Fix U1 and send everyone's keys to it (SPEC 6.1).

    Raises:
        NotEnoughSurvivors: |U1| below the threshold.
    """
    params = state.params
    members = _enough(params, state.received, Phase.ADVERTISE_KEYS)
    keys = [state.received[u] for u in members]
    directory = KeyDirectory(
        messages.encode_set(members, params.roster),
        tuple(key.channel_key for key in keys),
        tuple(key.mask_key for key in keys),
    )
    listed = ((u, k.channel_key, k.mask_key) for u, k in zip(members, keys, strict=True))
    off1 = context.advertised(context.offline(params), listed)
    mask_keys = {u: key.mask_key for u, key in zip(members, keys, strict=True)}
    return CollectingBundles(params, off1, mask_keys, {}), dict.fromkeys(members, directory)


# Round 1: share keys ---------------------------------------------------------------------------


def receive_bundles(
    state: CollectingBundles, client: int, message: ShareBundles
) -> CollectingBundles:
    """Record a client's bundles by recipient (SPEC 6.2)."""
    _check_sender(client, state.mask_keys, state.received, Phase.SHARE_KEYS)
    peers = complete(client, tuple(state.mask_keys))
    if len(peers) != len(message.bundles):
        raise RemoteProtocolError(client, Phase.SHARE_KEYS, "wrong number of bundles")
    bundles = dict(zip(peers, message.bundles, strict=True))
    received = {**state.received, client: bundles}
    return CollectingBundles(state.params, state.off1, state.mask_keys, received)


def end_bundles(state: CollectingBundles) -> tuple[CollectingInputs, dict[int, Message]]:
    """Fix U2 and route every bundle to its recipient (SPEC 6.2).

    Raises:
        NotEnoughSurvivors: |U2| below the threshold.
    """
    params = state.params
    active = _enough(params, state.received, Phase.SHARE_KEYS)
    sharers = messages.encode_set(active, params.roster)
    replies: dict[int, Message] = {
        v: BundleDelivery(sharers, tuple(state.received[u][v] for u in complete(v, active)))
        for v in active
    }
    on = context.online(state.off1, params, sharers)
    mask_keys = {u: state.mask_keys[u] for u in active}
    zeros = tuple(np.zeros(section.length, dtype=np.uint32) for section in params.sections)
    return CollectingInputs(params, on, mask_keys, frozenset(), zeros), replies


# Round 2: masked input collection --------------------------------------------------------------


def receive_input(state: CollectingInputs, client: int, message: MaskedInput) -> CollectingInputs:
    """Add a masked input to the running sum (SPEC 6.3).

    Raises:
        DecodeError: a vector of wrong size, with an element >= p or with padding bits set.
    """
    _check_sender(client, state.mask_keys, state.received, Phase.MASKED_INPUT)
    vectors = _unpack_sections(state.params, message)
    parts = zip(state.params.sections, state.totals, vectors, strict=True)
    totals = tuple(state.params.field(s).add(total, vector) for s, total, vector in parts)
    received = state.received | {client}
    return CollectingInputs(state.params, state.on, state.mask_keys, received, totals)


def _unpack_sections(params: AggregationParams, message: MaskedInput) -> Vectors:
    if len(message.sections) != len(params.sections):
        raise DecodeError("wrong number of sections")
    vectors = []
    for section, data in zip(params.sections, message.sections, strict=True):
        vector = unpack(data, params.field(section).bits, section.length)
        if not params.field(section).contains(vector):
            raise DecodeError("a masked element is not in the field")
        vectors.append(vector)
    return tuple(vectors)


def end_inputs(state: CollectingInputs) -> tuple[CollectingShares, dict[int, Message]]:
    """Fix U3, the set whose inputs are in the sum, and announce it (SPEC 6.3).

    Raises:
        NotEnoughSurvivors: |U3| below the threshold.
    """
    survivors = _enough(state.params, state.received, Phase.MASKED_INPUT)
    message = SurvivorSet(messages.encode_set(survivors, state.params.roster))
    nxt = CollectingShares(
        state.params, state.on, state.mask_keys, survivors, state.totals, received={}
    )
    return nxt, dict.fromkeys(survivors, message)


# Round 3: unmasking ----------------------------------------------------------------------------


def receive_shares(state: CollectingShares, client: int, message: UnmaskShares) -> CollectingShares:
    """Record a survivor's shares (SPEC 6.4).

    Raises:
        DecodeError: a share is not a field element.
    """
    _check_sender(client, state.survivors, state.received, Phase.UNMASKING)
    expected = len(state.survivors), len(state.dropped)
    if (len(message.self_shares), len(message.key_shares)) != expected:
        raise RemoteProtocolError(client, Phase.UNMASKING, "wrong number of shares")
    for share in message.self_shares + message.key_shares:
        shamir.decode_element(share)
    received = {**state.received, client: message}
    return CollectingShares(
        state.params, state.on, state.mask_keys, state.survivors, state.totals, received
    )


def end_shares(state: CollectingShares) -> Finished:
    """Rebuild the seeds, remove every mask, and give the sum (SPEC 6.4).

    Raises:
        NotEnoughSurvivors: fewer answers than the threshold.
        RemoteProtocolError: the shares of a dropped client do not rebuild its advertised key.
    """
    params = state.params
    _enough(params, state.received, Phase.UNMASKING)
    total = masking.MaskedSum(params, state.totals)
    for position, survivor in enumerate(state.survivors):
        shares = {u: m.self_shares[position] for u, m in state.received.items()}
        total.add(masking.self_mask_key(_rebuild(params, shares), survivor, state.on), -1)
    for position, dropped in enumerate(state.dropped):
        shares = {u: m.key_shares[position] for u, m in state.received.items()}
        _remove_pair_masks(state, total, dropped, _rebuild(params, shares))
    names = [section.name for section in params.sections]
    return Finished(dict(zip(names, total.reduced(), strict=True)), state.survivors)


def _rebuild(params: AggregationParams, shares: Mapping[int, bytes]) -> bytes:
    points = share_points(params)
    by_point = {points[client]: share for client, share in shares.items()}
    return shamir.reconstruct(by_point, params.threshold)


def _remove_pair_masks(
    state: CollectingShares, total: masking.MaskedSum, dropped: int, seed: bytes
) -> None:
    """Take back what every survivor added for a client that then fell silent."""
    pair = masking.mask_key_pair(seed, dropped, context.offline(state.params))
    if pair.public != state.mask_keys[dropped]:
        raise RemoteProtocolError(
            dropped, Phase.UNMASKING, "shares do not rebuild the advertised key"
        )
    for survivor in state.survivors:
        public = state.mask_keys[survivor]
        key = masking.pair_mask_key(pair, dropped, survivor, public, state.on)
        total.add(key, -masking.pair_sign(survivor, dropped))


# Checks common to all rounds -------------------------------------------------------------------

_Group = tuple[int, ...] | Mapping[int, object] | frozenset[int]


def _check_sender(client: int, allowed: _Group, received: _Group, phase: Phase) -> None:
    if client not in allowed:
        raise RemoteProtocolError(client, phase, "not taking part in this round")
    if client in received:
        raise RemoteProtocolError(client, phase, "second message of this round")


def _enough(params: AggregationParams, received: _Group, phase: Phase) -> tuple[int, ...]:
    """The senders of a round in roster order, at least the threshold of them."""
    if len(received) < params.threshold:
        raise NotEnoughSurvivors(phase, len(received), params.threshold)
    return tuple(sorted(received))


# Session ---------------------------------------------------------------------------------------


class ServerSession:
    """The server of one aggregation: bytes in, bytes out.

    Call `receive` for every arriving message and `end_round` when all have answered or the
    caller's deadline is over. A client whose message raises is barred, as if it had fallen silent
    then; the others go on (SPEC 6.5). When `end_round` raises, the aggregation stays failed.

    Args:
        params: agreed by all parties beforehand.
    """

    def __init__(self, params: AggregationParams) -> None:
        self._params = params
        self._barred: set[int] = set()
        self._state: State = CollectingKeys(params, {})

    def __repr__(self) -> str:
        return f"ServerSession({type(self._state).__name__})"

    @property
    def result(self) -> Finished:
        """The sum.

        Raises:
            LocalProtocolError: the aggregation has not finished.
        """
        if not isinstance(self._state, Finished):
            raise LocalProtocolError("there is no result")
        return self._state

    def receive(self, client: int, data: bytes) -> bool:
        """Take in one message.

        Args:
            client: who sent it, as the transport knows it.
            data: the encoded message.

        Returns:
            False if the message belongs to a round that has ended and was discarded.

        Raises:
            DecodeError, RemoteProtocolError: the client is at fault and barred from now on.
            LocalProtocolError: the aggregation is over or has failed.
        """
        state = self._collecting()
        try:
            nxt = self._received(state, client, data)
        except (DecodeError, RemoteProtocolError):
            self._barred.add(client)
            raise
        self._state = nxt
        return nxt is not state

    def end_round(self) -> dict[int, bytes]:
        """Fix who took part in the round and go on.

        Returns:
            Client -> encoded reply; empty after the last round, when `result` is there.

        Raises:
            NotEnoughSurvivors: fewer senders than the threshold.
            RemoteProtocolError: see `end_shares`.
            LocalProtocolError: the aggregation is over or has failed.
        """
        state = self._collecting()
        self._state = Failed()
        match state:
            case CollectingShares():
                self._state = end_shares(state)
                return {}
            case CollectingKeys():
                self._state, replies = end_keys(state)
            case CollectingBundles():
                self._state, replies = end_bundles(state)
            case CollectingInputs():
                self._state, replies = end_inputs(state)
            case _:
                assert_never(state)
        return {client: messages.encode(reply) for client, reply in replies.items()}

    def _collecting(self) -> Collecting:
        if isinstance(self._state, Finished | Failed):
            raise LocalProtocolError("the aggregation is over")
        return self._state

    def _received(self, state: Collecting, client: int, data: bytes) -> Collecting:
        phase = _PHASES[type(state)]
        if client in self._barred:
            raise RemoteProtocolError(client, phase, "barred after an earlier fault")
        message = messages.decode_upload(data, self._params)
        match state, message:
            case CollectingKeys(), Advertisement():
                return receive_keys(state, client, message)
            case CollectingBundles(), ShareBundles():
                return receive_bundles(state, client, message)
            case CollectingInputs(), MaskedInput():
                return receive_input(state, client, message)
            case CollectingShares(), UnmaskShares():
                return receive_shares(state, client, message)
            case _ if UPLOADS.index(type(message)) > tuple(Phase).index(phase):
                raise RemoteProtocolError(client, phase, "message of a later round")
            case _:
                return state
