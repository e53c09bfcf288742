"""One site: a client whose process may end after every message, and start again from its folder.

Flower starts a process for a message. So everything that a client must remember is in a folder of
its own, mode 0700, written before an answer leaves (D5). Messages of the protocol alone are
answered here, without PyTorch, whose import takes longer than all the cryptography; what concerns
models and data is in `flower.learning`.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.flower import allowance
from codream_secure.flower.allowance import Allowance
from codream_secure.flower.wire import (
    NO_SESSION,
    VERSION,
    Advertise,
    Answer,
    Ask,
    Batch,
    Begin,
    Confirm,
    End,
    Evidence,
    Hello,
    Images,
    Learn,
    Message,
    Present,
    Share,
    Unmask,
    Who,
    encode,
)
from codream_secure.state_folder import StateFolder, StoredClient, end_batches
from protocols.client import Inputs
from protocols.errors import SecAggError
from protocols.keys import SigningKey
from protocols.params import BatchParams, Task, ThreatModel, default_threshold
from protocols.policy import Policy, most_colluders
from protocols.preprocessing import Party

if TYPE_CHECKING:
    from codream_secure.data.datasets import Dataset
    from codream_secure.flower.learning import Learning

_SESSION = "session"
_log = logging.getLogger(__name__)


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


class Site:
    """Answers messages from its folder; close it before another process may.

    Args:
        settings: what the site brings.
        patience: seconds to wait for a process that still answers an earlier message.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, settings: SiteSettings, *, patience: float = 0.0) -> None:
        self._settings = settings
        self._folder = StateFolder(settings.folder, patience=patience)
        kept = self._folder.load(_SESSION)
        self._session = None if kept is None else msgspec.msgpack.decode(kept, type=Session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.close()

    def handle(self, message: Message) -> Answer:
        """Answer one message; what it takes to go on is on disk by then."""
        answer = self._answer(message)
        if isinstance(message, Ask | Unmask) and message.beside is not None:
            # The step and the next batch's keys have nothing to do with each other.
            beside = self._answer(message.beside)
            answer = msgspec.structs.replace(answer, beside=beside.data)
        return answer

    def _answer(self, message: Message) -> Answer:
        try:
            return self._handle(message)
        except (RequestRefused, SecAggError) as error:
            return Answer(refused=f"{type(error).__name__}: {error}"[:500])
        except Exception as error:  # noqa: BLE001 - whatever it is, the server learns no more
            # Its text may quote private data, also that of a UserError, which a model or a loader
            # of the site's own may have caused: it stays in the site's own log.
            _log.exception("no answer")
            return Answer(refused=f"{type(error).__name__}; see the site's log")

    def _handle(self, message: Message) -> Answer:
        if isinstance(message, Ask):
            return self._ask(message)
        if isinstance(message, Who):
            return Answer(str(self._settings.client).encode())
        if isinstance(message, Hello):
            return Answer(encode(self._hello(message)))
        if isinstance(message, Learn | Images):
            self._remember(self._learning().take(message))
            return Answer(b"done")
        if isinstance(message, End):
            end_batches(self._folder, self._known.session)
            return Answer(b"done")
        if isinstance(message, Begin):
            raise RequestRefused("this site takes part in runs of codream only")
        return Answer(self._protocol(message))

    def _protocol(self, message: Advertise | Share | Confirm | Unmask | Evidence) -> bytes:
        client = self._client(message.batch)
        if isinstance(message, Advertise):
            return client.advertise_keys()
        if isinstance(message, Share):
            return client.share_keys(message.directory)
        if isinstance(message, Confirm):
            return client.confirm(message.survivors)
        if isinstance(message, Evidence):
            return client.evidence(message.request)
        return client.unmask(message.data)

    def _hello(self, message: Hello) -> Present:
        """Begin a session, or find that it has begun."""
        known = self._session
        if known is not None and known.session == message.session:
            asked = message.options, message.spec, message.identities
            if (known.options, known.spec, known.identities) != asked:
                raise RequestRefused("the session is known, with other settings")
            return self._learning().present()
        from codream_secure.flower.learning import Learning  # noqa: PLC0415 - PyTorch is slow

        self._check_terms(
            message.identities,
            threat_model=message.options.get("threat_model"),
            threshold=message.options.get("threshold"),
            rejoin=message.options.get("rejoin"),
        )
        if self._settings.allowance is not None:
            self._settings.allowance.take(
                self._folder,
                message.session,
                message.options,
                colluders=self._colluders(message.options.get("threshold")),
            )
        for name in self._folder.names():
            if name != allowance.RECORD:
                self._folder.erase(name)
        learning = Learning.begin(self._settings, self._folder, message)
        self._remember(learning.session)
        return learning.present()

    def _check_terms(
        self,
        identities: tuple[bytes, ...],
        *,
        threat_model: object,
        threshold: object,
        rejoin: object,
    ) -> None:
        """Refuse terms that would take from a site what its keys and roster are for.

        Args:
            identities: everybody's public keys, as the server has them.
            threat_model: of the session; a site with a signing key takes part in no other but the
                malicious model, or a server could ask it to do without.
            threshold: of the session; None is the default.
            rejoin: of the session: cohorts that grow again are the site's to allow (D1).
        """
        settings = self._settings
        if (threat_model == "malicious") != (settings.identity is not None):
            raise RequestRefused(f"this site is not set up for the {threat_model} model")
        if identities != (settings.roster if settings.identity else ()):
            raise RequestRefused("the server's list of public keys is not this site's roster")
        clients = len(identities)
        if clients and isinstance(threshold, int) and threshold < default_threshold(clients):
            raise RequestRefused(f"threshold {threshold} of {clients} is too low")
        if settings.identity is not None and rejoin and not settings.rejoin:
            raise RequestRefused("this site does not allow rejoining: rejoin=true in --node-config")

    def _colluders(self, threshold: object) -> int | None:
        """Return n_C of the roster; None: nobody knows who takes part."""
        clients = len(self._settings.roster)
        if self._settings.identity is None:
            return None
        needed = threshold if isinstance(threshold, int) else default_threshold(clients)
        return most_colluders(clients, needed, "malicious")

    def _remember(self, session: Session) -> None:
        self._session = session
        self._folder.save(_SESSION, msgspec.msgpack.encode(session))

    def _learning(self) -> "Learning":
        from codream_secure.flower.learning import Learning  # noqa: PLC0415 - PyTorch is slow

        return Learning(self._settings, self._folder, self._known)

    @property
    def _known(self) -> Session:
        if self._session is None:
            raise RequestRefused(NO_SESSION)
        return self._session

    def _client(self, batch: Batch) -> StoredClient:
        known = self._known
        terms, malicious = known.terms, known.terms.threat_model == "malicious"
        params = BatchParams(
            session=known.session,
            batch=batch.number,
            steps=batch.steps,
            roster=tuple(range(terms.clients)),
            threshold=terms.threshold,
            threat_model=terms.threat_model,
            identities=known.identities,
        )
        policy = Policy(
            min_clients=terms.threshold,
            colluders=terms.colluders,
            max_steps=terms.key_steps,
            kinds=frozenset(terms.kinds),
            rejoin=terms.rejoin,
        )
        party = Party(
            params,
            self._settings.client,
            identity=self._settings.identity if malicious else None,
            policy=policy if malicious else None,
        )
        return StoredClient(self._folder, party, os.urandom)

    def _contribution(self, message: Ask) -> tuple[Task, Inputs]:
        return self._learning().answer(message)

    def _ask(self, message: Ask) -> Answer:
        stored = self._client(message.batch)
        report = stored.open_bundles(message.delivery) if message.delivery else None
        task, inputs = self._contribution(message)
        masked = stored.masked_input(message.request, task, inputs)
        return Answer(masked, report=report or b"")


def check_version(servers: int) -> None:
    """Raise RequestRefused for a server that speaks another version."""
    if servers != VERSION:
        raise RequestRefused(
            f"the server speaks version {servers} and this site {VERSION}: "
            "install the same codream-secure on both"
        )
