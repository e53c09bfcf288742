"""The table of the server's rounds (SPEC 6.10).

`ROUNDS` lists every state in which the server collects messages: which message it takes, under
which context that is signed, how it is taken in, and how the round ends. `ServerSession` looks
everything up here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from protocols import messages
from protocols.messages import (
    Advertisement,
    BundleReport,
    Consistency,
    MaskedInput,
    Message,
    Nonce,
    OnlineUpload,
    ShareBundles,
    UnmaskShares,
    Upload,
)
from protocols.params import BatchParams
from protocols.phases import Phase
from protocols.server import consistency, offline, step
from protocols.server.offline import (
    Arrival,
    CollectingBundles,
    CollectingKeys,
    CollectingNonces,
    Failed,
    Idle,
    Replies,
)
from protocols.server.step import (
    CollectingInputs,
    CollectingShares,
    CollectingSignatures,
    Finished,
    Online,
)

Collecting = CollectingKeys | CollectingNonces | CollectingBundles | Online
State = Collecting | Idle | Finished | Failed


@dataclass(frozen=True, slots=True)
class Round:
    """One row of the table: a state in which the server collects messages.

    Attributes:
        phase: the round.
        takes: the message that clients send in it.
        bound: (batch, state) -> the context that the message is signed under.
        receive: (batch, state, arrival) -> the state with one message more.
        end: (batch, state) -> the next state, and the replies.
        leads_to: the types of states that `end` can lead to.
    """

    phase: Phase
    takes: type[Upload]
    bound: Callable[[BatchParams, Any], bytes]
    receive: Callable[[BatchParams, Any, Arrival[Any]], Collecting]
    end: Callable[[BatchParams, Any], tuple[State, Replies]]
    leads_to: tuple[type[State], ...]


ROUNDS: Mapping[type[Collecting], Round] = {
    CollectingKeys: Round(
        Phase.ADVERTISE_KEYS,
        Advertisement,
        offline.keys_bound,
        offline.receive_keys,
        offline.end_keys,
        (CollectingNonces, CollectingBundles),
    ),
    CollectingNonces: Round(
        Phase.DRAW_GRAPH,
        Nonce,
        offline.keys_bound,
        offline.receive_nonce,
        offline.end_nonces,
        (CollectingBundles,),
    ),
    CollectingBundles: Round(
        Phase.SHARE_KEYS,
        ShareBundles,
        offline.bundles_bound,
        offline.receive_bundles,
        offline.end_bundles,
        (Idle,),
    ),
    CollectingInputs: Round(
        Phase.MASKED_INPUT,
        MaskedInput,
        step.input_bound,
        step.receive_input,
        step.end_inputs,
        (CollectingSignatures, CollectingShares),
    ),
    CollectingSignatures: Round(
        Phase.CONSISTENCY,
        Consistency,
        consistency.survivors_bound,
        consistency.receive_signature,
        consistency.end_signatures,
        (CollectingShares,),
    ),
    CollectingShares: Round(
        Phase.UNMASKING,
        UnmaskShares,
        consistency.survivors_bound,
        step.receive_shares,
        step.end_shares,
        (Finished,),
    ),
}
# A step can begin in these states.
RESTING = Idle, Finished
# Uploads in the order in which a batch has them. A message that comes before its place in this
# order breaks a rule; one that comes after it is merely late. Reports are taken at any time after
# the exchange that they are about.
ORDER: tuple[type[Upload], ...] = (
    Advertisement, Nonce, ShareBundles, BundleReport,
    MaskedInput, Consistency, UnmaskShares,
)  # fmt: skip


def moment(message: Upload) -> tuple[int, int]:
    """Return the key step of a message, -1 offline, and its place in `ORDER`."""
    kinds = [isinstance(message, kind) for kind in ORDER]
    return message.key if isinstance(message, OnlineUpload) else -1, kinds.index(True)


class Encoded(Mapping[int, bytes]):
    """Replies by client, encoded when they are asked for.

    On the ring every reply of the draw lists all nonces. All n replies together would take memory
    that grows with n^2.
    """

    def __init__(self, replies: Replies) -> None:
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
