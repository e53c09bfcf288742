"""The settings of a site, and its record of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from codream_secure.errors import RequestRefused, UserError
from codream_secure.sites.wire import VERSION, Images, Lesson
from codream_secure.storage.state_folder import StateFolder
from protocols.phases import ThreatModel
from protocols.primitives.keys import SigningKey

# The record in a site's folder that says whose it is.
OWNER: Final = "owner"

if TYPE_CHECKING:
    from codream_secure.data.datasets import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """What a site brings. Its bounds are in a file beside ``folder``: `sites.policy.SitePolicy`.

    Attributes:
        client: its number in the roster, from 0.
        folder: a folder of its own, for everything that must survive a restart.
        load: returns its examples. With ``whole`` the whole training part belongs to the site;
            otherwise its part of the partition that the run names (a demonstration with public
            data).
        whole: see ``load``.
        classes: how many its data have; None: as many as the run says. A run with another number
            is refused before any data are read.
        model: its architecture, which no other party learns; None: the one that the run assigns.
        identity: its signing key, in the malicious model.
        roster: public keys of all sites, which do not come from the server.
        node: number of the Flower node that it runs on.

    Raises:
        UserError: only one of ``identity`` and ``roster`` is given.
    """

    client: int
    folder: Path
    load: "Callable[[], Dataset]"
    whole: bool = False
    classes: int | None = None
    model: str | None = None
    identity: SigningKey | None = None
    roster: tuple[bytes, ...] = ()
    node: int = 0

    def __post_init__(self) -> None:
        """Refuse half of what the malicious model needs: the site would run in the weaker one."""
        if self.roster and self.identity is None:
            raise UserError(
                "a roster without an identity protects nothing: give this site's key too "
                "(identity), or leave the roster out for the semi-honest model"
            )
        if self.identity is not None and not self.roster:
            raise UserError("an identity needs the roster that it is in: roster")


class Terms(msgspec.Struct, frozen=True):
    """What the protocol's client must know of a session; `protocols.policy.Policy` enforces it.

    ``chosen``: k and τ of the graph that sites choose themselves; None: the complete graph.
    """

    clients: int
    threshold: int
    threat_model: ThreatModel
    colluders: int
    key_steps: int
    rejoin: bool
    kinds: tuple[str, ...]
    chosen: tuple[int, int] | None = None


class Session(msgspec.Struct, frozen=True):
    """A run as a site remembers it; a record in the site's folder.

    ``rounds``: how many rounds the site has learned from. ``begun``: whether it has trained before
    the first one. ``history``: digest of the session's record, see `sites.history`.
    ``received``: how many items of the record these were; in the folder it is named "heard".
    ``last``: the last step that the record lists.
    """

    session: bytes
    options: dict[str, int | float | str | bool | None]
    spec: tuple[int, int, int, int]
    identities: tuple[bytes, ...]
    terms: Terms
    rounds: int = 0
    begun: bool = True
    history: bytes = b""
    received: int = msgspec.field(name="heard", default=0)
    last: int = -1

    def has_learned(self, message: Lesson) -> bool:
        """Return whether the site has learned from a message already.

        Raises:
            RequestRefused: an earlier round comes first.
        """
        if isinstance(message, Images):
            return self.begun
        if message.round > self.rounds + 1:
            raise RequestRefused(f"round {self.rounds + 1} comes first")
        return message.round <= self.rounds

    @property
    def agreed(self) -> tuple[object, ...]:
        """What the site agreed to when the session began; it must not change."""
        return self.session, self.options, self.spec, self.identities, self.terms


class _Owner(msgspec.Struct, frozen=True, array_like=True):
    """Whose folder it is: the site's number, and its public key if it has one."""

    client: int
    identity: bytes


def check_owner(folder: StateFolder, settings: SiteSettings) -> None:
    """Note whose a state folder is. What was answered and spent belongs to one identity.

    Raises:
        UserError: it is another site's.
    """
    own = _Owner(settings.client, settings.identity.public if settings.identity else b"")
    known = folder.load_as(OWNER, _Owner)
    if known == own:
        return
    # A site of the semi-honest model may get its key later; it keeps what it remembers.
    if known is not None and (known.client != own.client or known.identity):
        whose = f"site {known.client}" if known.client != own.client else "another signing key"
        raise UserError(
            f"the state folder {folder.path} is that of {whose}: give each identity its own"
        )
    folder.save(OWNER, msgspec.msgpack.encode(own))


def check_version(version: int) -> None:
    """Raise RequestRefused if the server's messages are of another version than the site's."""
    if version != VERSION:
        raise RequestRefused(
            f"the server speaks version {version} and this site {VERSION}: "
            "install the same codream-secure on both"
        )
