"""One site: a client whose process may end after every message, and start again from its folder.

Flower starts a process for a message. So everything that a client must remember is in a folder of
its own, mode 0700, written before an answer leaves (D5). Messages of the protocol alone are
answered here, without PyTorch, whose import takes longer than all the cryptography; what concerns
models and data is in `flower.learning`.
"""

import logging
import os
from typing import TYPE_CHECKING, Protocol, Self

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.sites import allowance
from codream_secure.sites.session import Session, SiteSettings, Terms, check_version
from codream_secure.sites.stored_client import StoredClient, end_batches
from codream_secure.sites.wire import (
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
    Joined,
    Learn,
    Message,
    Present,
    Share,
    Unmask,
    Who,
    decode,
    encode,
)
from codream_secure.storage.state_folder import StateFolder
from protocols.client.states import Party
from protocols.client.step import Inputs
from protocols.errors import SecAggError
from protocols.params import BatchParams, Task, default_threshold
from protocols.policy import Policy, most_colluders

if TYPE_CHECKING:
    from codream_secure.sites.dream_site import Learning

_SESSION = "session"
_log = logging.getLogger(__name__)


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
        from codream_secure.sites.dream_site import Learning  # noqa: PLC0415 - PyTorch is slow

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
        from codream_secure.sites.dream_site import Learning  # noqa: PLC0415 - PyTorch is slow

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


# The last step whose inputs were computed, and the digest of its broadcast.
_ASKED = "asked"


_NO_SPEC = (0, 0, 0, 0)  # no images take part in sums alone


class Summand(Protocol):
    """What a site adds to a sum."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of sums the site takes part in."""

    def task(self, broadcast: bytes, step: int) -> Task:
        """Return what is summed; cheap, also when the same is asked again.

        Raises:
            RequestRefused: the broadcast is not for this step, or outside what the site does.
        """

    def inputs(self, broadcast: bytes, folder: StateFolder) -> Inputs:
        """Return the site's part, by section; called once for a broadcast."""


class SumSite(Site):
    """Answers the messages of sums from its folder; close it before another process may.

    A site with a signing key takes part in the malicious model only, with everybody on its own
    roster and at least the default threshold.

    Args:
        settings: what the site brings; data are not needed.
        summand: what it adds.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, settings: SiteSettings, summand: Summand) -> None:
        super().__init__(settings)
        self._summand = summand

    def handle_bytes(self, body: bytes) -> bytes:
        """Answer one encoded message."""
        try:
            message = decode(body)
        except msgspec.DecodeError as error:
            return encode(Answer(refused=f"not a message of version {VERSION}: {error}"[:500]))
        return encode(self.handle(message))

    def _handle(self, message: Message) -> Answer:
        if isinstance(message, Begin):
            return Answer(encode(self._begin(message)))
        if isinstance(message, Hello | Learn | Images):
            raise RequestRefused("this site takes part in sums only")
        return super()._handle(message)

    def _begin(self, message: Begin) -> Joined:
        """Begin a session, or find that it has begun."""
        wanted = Session(
            session=message.session,
            options={},
            spec=_NO_SPEC,
            identities=message.identities,
            terms=self._terms(message),
        )
        known = self._session
        if known is None or known.session != message.session:
            self._check(message)
            for name in self._folder.names():
                self._folder.erase(name)
            self._remember(wanted)
        elif known != wanted:
            raise RequestRefused("the session is known, with other settings")
        own = self._settings.identity
        return Joined(VERSION, self._settings.client, own.public if own else b"")

    def _check(self, message: Begin) -> None:
        check_version(message.version)
        self._check_terms(
            message.identities,
            threat_model=message.threat_model,
            threshold=message.threshold,
            rejoin=message.rejoin,
        )

    def _terms(self, message: Begin) -> Terms:
        return Terms(
            clients=message.clients,
            threshold=message.threshold,
            threat_model=message.threat_model,
            colluders=most_colluders(message.clients, message.threshold, message.threat_model),
            key_steps=message.key_steps,
            rejoin=message.rejoin,
            kinds=self._summand.kinds,
        )

    def _contribution(self, message: Ask) -> tuple[Task, Inputs]:
        """Return what is summed and the site's part, which is computed once (D1, D5).

        A request that was answered before gets no inputs: its stored answer is sent again.

        Raises:
            RequestRefused: an earlier step, or the same one otherwise; nothing is computed.
        """
        task = self._summand.task(message.broadcast, message.step)
        kept = self._folder.load(_ASKED)
        asked = (task.step, task.broadcast_digest)
        if kept is not None:
            last = msgspec.msgpack.decode(kept, type=tuple[int, bytes])
            if asked == last:
                return task, {}
            if task.step <= last[0]:
                raise RequestRefused(f"step {task.step} after step {last[0]} (D1)")
        inputs = self._summand.inputs(message.broadcast, self._folder)
        self._folder.save(_ASKED, msgspec.msgpack.encode(asked))
        return task, inputs
