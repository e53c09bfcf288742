"""The states of a client: one frozen type for each, with all that it remembers (SPEC 6.7).

The figure of SPEC 6.10 shows the transitions; `protocols.client.session` holds them as a table.
Everything here may hold secrets and can be stored by its owner. No `repr` shows a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from protocols import context, signing
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.graph import Clients
from protocols.messages import Message
from protocols.params import BatchParams
from protocols.phases import Phase
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey


class Secret(msgspec.Struct, frozen=True):
    """Base of every type with a secret inside. Its `repr` shows the name of the type only."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class SelfShare(Secret, frozen=True):
    """A share of the self-mask seed of a client that survived the step."""

    value: bytes


class KeyShare(Secret, frozen=True):
    """A share of the mask-key seed of a client that dropped out of the step."""

    value: bytes


class HeldShares(Secret, frozen=True):
    """Both shares of one peer for one step. At most one of them ever leaves the client."""

    mask_key: KeyShare
    self_mask: SelfShare


class OwnSeeds(Secret, frozen=True):
    """The client's own two seeds for one step."""

    mask_key: bytes
    self_mask: bytes


class StepKeys(Secret, frozen=True):
    """The secrets of one step: the client's own seeds, and the shares it holds, by owner."""

    seeds: OwnSeeds
    held: dict[int, HeldShares]


class State(Secret, frozen=True, tag=True):
    """Base of the client's states."""


class Start(State, frozen=True):
    """Nothing was sent yet."""


class Advertised(State, frozen=True):
    """The keys were sent. Next: the key directory; on the ring the nonce commitments.

    Attributes:
        chosen: chosen graph: whom the client chose; they are to hold its shares.
    """

    channel: bytes
    seeds: tuple[OwnSeeds, ...]
    sent: bytes
    nonce: bytes = b""
    chosen: Clients = ()


class Drawn(State, frozen=True):
    """Ring: the nonce was sent. Next: all nonces, and the keys of the neighbours."""

    own: Advertised
    committed: dict[int, bytes]


class Shared(State, frozen=True):
    """The bundles were sent and the channel secret was erased. Next: the peers' bundles.

    Attributes:
        inbound_keys: sender -> the key of its bundle for this client.
        own_shares: shares of the client's own seeds; complete graph only.
        non_neighbours: the rest of U1, from whom no bundle comes.
        chosen: chosen graph: the members of U1 that hold this client's shares.
    """

    off1: bytes
    mask_keys: dict[int, tuple[bytes, ...]]
    inbound_keys: dict[int, bytes]
    seeds: tuple[OwnSeeds, ...]
    own_shares: tuple[HeldShares, ...]
    # Stored under the name of earlier versions, so that their records stay readable.
    non_neighbours: Clients = msgspec.field(default=(), name="strangers")
    chosen: Clients = ()


class Masked(Secret, frozen=True, tag=True):
    """Step: the masked input was sent and the own seeds were erased. Next: the survivor set.

    Attributes:
        non_neighbours: the active clients of which no shares are held.
        chosen: chosen graph: the active clients that hold this client's shares.
    """

    key: int
    on: bytes
    held: dict[int, HeldShares]
    non_neighbours: Clients = msgspec.field(default=(), name="strangers")
    chosen: Clients = ()


class Confirmed(Secret, frozen=True, tag=True):
    """Step, malicious model: the survivor set was signed. Next: the others' signatures."""

    key: int
    on: bytes
    held: dict[int, HeldShares]
    survivors: Clients
    non_neighbours: Clients = msgspec.field(default=(), name="strangers")
    chosen: Clients = ()


Running = Masked | Confirmed
"""Where a client stands inside a step."""


class Prepared(State, frozen=True):
    """Ready for the steps whose keys are in `unused`. A step may be running in `current`.

    Attributes:
        unused: key step -> its secrets.
        current: the running step; None between steps.
        last_step: the last protocol step that was answered; -1 before the first.
        cohort: who took part in the last step, as far as this client was told; None before it.
        non_neighbours: members of U2 of which no shares are held; on sparse graphs the client too.
        chosen: chosen graph: the members of U2 that hold this client's shares.
    """

    off1: bytes
    mask_keys: dict[int, tuple[bytes, ...]]
    unused: dict[int, StepKeys]
    current: Running | None = None
    last_step: int = -1
    cohort: Clients | None = None
    non_neighbours: Clients = msgspec.field(default=(), name="strangers")
    chosen: Clients = ()


class Failed(State, frozen=True):
    """The offline exchange failed. Nothing runs in this batch again."""


class Ended(State, frozen=True):
    """The batch is over. All of its secrets are gone."""


class Move(NamedTuple):
    """The result of one transition: the next state, the reply, and what the reply is signed under.

    `reply` is None if there is nothing to send. `bound` matters in the malicious model only.
    """

    state: State
    reply: Message | None
    bound: bytes


@dataclass(frozen=True, slots=True)
class Party:
    """One client in one batch, and the conditions under which it takes part.

    Args:
        batch: what all parties agreed on.
        client: the client's own id.
        identity: malicious model: the key that signs every message; else None.
        policy: the client's own bounds; None accepts everything.

    Raises:
        LocalProtocolError: the client is not in the roster, or its key is not the roster's.
        PolicyError: the batch is outside the policy.
    """

    batch: BatchParams
    client: int
    identity: SigningKey | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.client not in self.batch.roster:
            raise LocalProtocolError(f"client {self.client} is not in the roster")
        own = self.batch.identity(self.client) if self.batch.malicious else None
        if own != (self.identity.public if self.identity else None):
            raise LocalProtocolError("the signing key is not the identity of the roster")
        if self.batch.malicious and self.policy is None:
            raise LocalProtocolError("the malicious model needs a policy")
        if self.policy is not None:
            self.policy.check_batch(self.batch)

    def wrap(self, bound: bytes, message: Message) -> bytes:
        """Encode an upload. In the malicious model, sign it under the context `bound`."""
        return signing.wrap(self.identity, self.client, bound, message)

    @property
    def off0(self) -> bytes:
        """The offline context (SPEC 3.2)."""
        return context.offline(self.batch)


def server_fault(phase: Phase, message: str) -> RemoteProtocolError:
    """Return the error that says that the server broke a rule."""
    return RemoteProtocolError(None, phase, message)
