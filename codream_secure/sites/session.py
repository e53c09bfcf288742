"""What a site brings to a run, and what it remembers of one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.sites.allowance import Allowance
from codream_secure.sites.wire import (
    VERSION,
)
from protocols.phases import ThreatModel
from protocols.primitives.keys import SigningKey

if TYPE_CHECKING:
    from codream_secure.data.datasets import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """What a site brings.

    Attributes:
        client: its number in the roster, from 0.
        folder: of its own, for everything that must survive.
        load: returns its examples; with ``whole`` all of the training part is its own, else its
            part of the partition that the run names (a demonstration with public data).
        whole: see ``load``.
        model: its architecture, which nobody else learns; None: the one that the run gives it.
        identity: its signing key, in the malicious model.
        roster: everybody's public keys, known by other means than the server.
        allowance: what runs may spend of its examples' privacy; None: that is up to the server.
        rejoin: malicious model: whether sites that missed a step may be back in the next one.
    """

    client: int
    folder: Path
    load: "Callable[[], Dataset]"
    whole: bool = False
    model: str | None = None
    identity: SigningKey | None = None
    roster: tuple[bytes, ...] = ()
    allowance: Allowance | None = None
    rejoin: bool = False


class Terms(msgspec.Struct, frozen=True):
    """What the protocol needs to know of a run."""

    clients: int
    threshold: int
    threat_model: ThreatModel
    colluders: int
    key_steps: int
    rejoin: bool
    kinds: tuple[str, ...]


class Session(msgspec.Struct, frozen=True):
    """A run as a site remembers it.

    ``rounds``: that it has learned from. ``begun``: whether it has trained before the first one.
    ``history``: digest of all that it was told, ``heard``: how much that was; see `flower.history`.
    """

    session: bytes
    options: dict[str, int | float | str | bool | None]
    spec: tuple[int, int, int, int]
    identities: tuple[bytes, ...]
    terms: Terms
    rounds: int = 0
    begun: bool = True
    history: bytes = b""
    heard: int = 0


def check_version(servers: int) -> None:
    """Raise RequestRefused for a server that speaks another version."""
    if servers != VERSION:
        raise RequestRefused(
            f"the server speaks version {servers} and this site {VERSION}: "
            "install the same codream-secure on both"
        )
