"""A site that takes part in sums and nothing else: whoever uses it says what is summed."""

from typing import Protocol

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.flower.site import Session, Site, SiteSettings, Terms, check_version
from codream_secure.flower.wire import (
    VERSION,
    Answer,
    Ask,
    Begin,
    Hello,
    Images,
    Joined,
    Learn,
    Message,
    decode,
    encode,
)
from codream_secure.state_folder import StateFolder
from protocols.client import Inputs
from protocols.params import Task
from protocols.policy import most_colluders

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
