"""What every owner of rounds shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from protocols.errors import LocalProtocolError
from protocols.phases import Phase
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey

Direction = Literal["up", "down"]
Tap = Callable[[Phase, Direction, int, bytes], None]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the clients of a malicious-model run bring: signing keys by client, and one policy."""

    keys: Mapping[int, SigningKey]
    policy: Policy = field(default_factory=Policy)

    def identities(self, roster: tuple[int, ...]) -> tuple[bytes, ...]:
        """Return the public keys in roster order.

        Raises:
            LocalProtocolError: a client has no key.
        """
        if not set(roster) <= set(self.keys):
            raise LocalProtocolError("a client has no signing key")
        return tuple(self.keys[u].public for u in roster)
