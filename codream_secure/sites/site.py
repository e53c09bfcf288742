"""One site: a client whose process may end after every message and restart from its folder.

Flower starts a new process for each message. Therefore everything that a client must remember is
in a folder of its own with mode 0700, and is on disk before an answer leaves (D5).

This module needs no PyTorch: importing it takes longer than all cryptography of a message. What
needs models and data is in `sites.dream_site` and `sites.stored_learner`.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import msgspec

from codream_secure.errors import RequestRefused, UserError
from codream_secure.sites import allowance, contents, pending, site_log, weights
from codream_secure.sites.following import Following
from codream_secure.sites.history import beginning, name_of
from codream_secure.sites.pace import Pace
from codream_secure.sites.party import party_of
from codream_secure.sites.policy import SitePolicy
from codream_secure.sites.presence import claim_of, proof_of
from codream_secure.sites.proposals import check_task, check_terms
from codream_secure.sites.session import (
    OWNER,
    Session,
    SiteSettings,
    Terms,
    check_owner,
    check_version,
)
from codream_secure.sites.stored_client import StoredClient, end_batches
from codream_secure.sites.summand import Compute, Contribution, Summand, noted_inputs
from codream_secure.sites.wire import (
    NO_SESSION,
    VERSION,
    Advertise,
    Answer,
    Ask,
    Batch,
    Begin,
    Confirm,
    Deliver,
    End,
    Hello,
    Images,
    Joined,
    Learn,
    Listed,
    Message,
    Share,
    Unmask,
    Who,
    decode,
    encode,
)
from codream_secure.storage.state_folder import StateFolder
from protocols.client.step import Inputs
from protocols.errors import SecAggError
from protocols.params import Task
from protocols.policy import most_colluders

# Records in the site's folder: the session, and the last step whose inputs were computed, with
# the digest of its broadcast.
_SESSION, _ASKED = "session", "asked"
# Records that outlive sessions.
_OF_IDENTITY = frozenset(
    {OWNER, allowance.RECORD, site_log.RECORD, contents.RECORD, weights.RECORD}
)
_NO_SPEC = (0, 0, 0, 0)  # a session of sums alone has no images
# A refusal is one line in the server's log.
_LONGEST_REFUSAL = 500
_FAILED = "the site failed; see its log"
_log = logging.getLogger(__name__)


class Site:
    """A site that takes part in secure sums; `DreamSite` extends it with learning.

    A site with a signing key takes part in the malicious model only, with exactly the public keys
    of its own roster and at least the default threshold. Close the site before another process
    opens its folder.

    Args:
        settings: what the site brings.
        summand: what it adds to sums; None in a subclass that overrides `_contribution` and
            `_handle_session`.
        patience: seconds to wait for a process that still answers an earlier message.

    Raises:
        UserError: the folder or the policy file beside it cannot be used, or it is another site's.
    """

    def __init__(
        self, settings: SiteSettings, summand: Summand | None = None, *, patience: float = 0.0
    ) -> None:
        self._settings, self._summand = settings, summand
        self._site_policy = SitePolicy.beside(settings.folder)
        self._folder = StateFolder(settings.folder, patience=patience)
        try:
            check_owner(self._folder, settings)
        except UserError:
            self._folder.close()
            raise
        self._session = self._folder.load_as(_SESSION, Session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.close()

    @property
    def state(self) -> bytes | None:
        """What the steps that are known to be finished have left; None: nothing in this session."""
        return self._folder.load(pending.STATE)

    def handle_bytes(self, body: bytes) -> bytes:
        """Answer one encoded message with an encoded answer; undecodable bytes are refused.

        The answer leaves at the pace of the site's policy (`sites.pace`).
        """
        pace = Pace(self._site_policy.answer_every)
        began = pace.began()
        answer = self._answer_to_bytes(body)
        pace.wait(began)
        return answer

    def _answer_to_bytes(self, body: bytes) -> bytes:
        try:
            message = decode(body)
        except msgspec.DecodeError as error:
            reason = f"not a message of version {VERSION}: {error}"
            return encode(Answer(refused=reason[:_LONGEST_REFUSAL]))
        return encode(self.handle(message))

    def handle(self, message: Message) -> Answer:
        """Answer one message. All that later messages need is on disk when this returns."""
        answer = self._answer(message)
        if isinstance(message, Ask | Unmask) and message.key_exchange is not None:
            # The step and the exchange of the next keys are independent: one may be refused and
            # the other answered.
            keys = self._answer(message.key_exchange)
            answer = msgspec.structs.replace(answer, key_exchange=keys.data)
        return answer

    def _answer(self, message: Message) -> Answer:
        """Answer a message, or say in one line why not; the site's log counts refusals."""
        answer = self._answer_or_refusal(message)
        if answer.refused:
            _log.warning("refused: %s", answer.refused)
            site_log.record(self._folder, refused=1)
        return answer

    def _answer_or_refusal(self, message: Message) -> Answer:
        try:
            return self._handle(message)
        except (RequestRefused, SecAggError) as error:
            return Answer(refused=f"{type(error).__name__}: {error}"[:_LONGEST_REFUSAL])
        except Exception:  # noqa: BLE001 - whatever it is, the server learns no more
            # The text may quote private data, and its type may depend on one example. So may those
            # of a UserError, which the site's own model or loader can raise.
            _log.exception("no answer")
            return Answer(refused=_FAILED)

    def _handle(self, message: Message) -> Answer:
        match message:
            case Ask():
                return self._ask(message)
            case Who():
                return Answer(encode(claim_of(self._settings, message)))
            case End():
                end_batches(self._folder, self._current.session)
                return Answer(b"done")
            case Begin() | Hello() | Learn() | Images():
                return Answer(self._handle_session(message))
            case _:
                return Answer(self._exchange(message))

    def _handle_session(self, message: Begin | Hello | Learn | Images) -> bytes:
        """Answer a message about a session, not about one of its sums."""
        if not isinstance(message, Begin):
            raise RequestRefused("this site takes part in sums only")
        return encode(self._begin(message))

    def _exchange(self, message: Advertise | Share | Deliver | Confirm | Unmask) -> bytes:
        """Answer a protocol message that carries no input of the site."""
        client = self._client(message.batch)
        match message:
            case Advertise():
                return client.advertise_keys()
            case Share():
                return client.share_keys(message.directory)
            case Deliver():
                return client.open_bundles(message.delivery) or b""
            case Confirm():
                self._following.confirm(client, message.survivors)
                answer = client.confirm(message.survivors)
                pending.note(self._folder, client)
                return answer
            case Unmask():
                answer = client.unmask(message.data)
                pending.note_proof(self._folder)
                return answer

    def _ask(self, message: Ask) -> Answer:
        """Answer with the site's masked input."""
        client = self._client(message.batch)
        report = client.open_bundles(message.delivery) if message.delivery else None
        request = self._follow(message.missed, message.step, message.broadcast)
        task, compute = self._contribution(message, request)

        def noted() -> Inputs:
            found = compute()
            pending.computed(self._folder, task.step, name_of(request), found.state)
            return noted_inputs(self._folder, task.kind, found)

        try:
            # The client calls `compute` when nothing can refuse the step any more. For a repeated
            # request it sends its stored answer.
            masked = client.masked_input(message.request, task, noted)
        except SecAggError as error:
            if not report:
                raise
            # The server must learn why: without the report it would ask the same again.
            return Answer(report=report, refused=f"{type(error).__name__}: {error}")
        pending.note(self._folder, client)
        return Answer(masked, report=report or b"")

    def _follow(self, missed: Sequence[Listed], step: int | None, public: bytes = b"") -> bytes:
        """Follow the record; see `Following.follow`."""
        return self._following.follow(missed, step, public, self._remember)

    @property
    def _following(self) -> Following:
        return Following(self._settings, self._site_policy, self._folder, self._current)

    def _contribution(self, message: Ask, request: bytes) -> tuple[Task, Compute]:
        """Check a request; return what is summed, and what computes the site's input (D1, D5).

        Raises:
            RequestRefused: an earlier step, or the last one with another broadcast, or what the
                site refuses.
        """
        summand = self._own_summand
        task = summand.task(request, message.step, self._folder)
        task = replace(task, broadcast_digest=name_of(message.broadcast))
        check_task(self._site_policy, task)
        now = (task.step, task.broadcast_digest)
        last = self._folder.load_as(_ASKED, tuple[int, bytes]) or (-1, b"")
        if now != last and task.step <= last[0]:
            raise RequestRefused(f"step {task.step} after step {last[0]} (D1)")

        if now != last:
            contents.admit(self._folder, summand.content(request))
            self._following.admit(message)

        def compute() -> Contribution:
            if now == last:  # the process died before its answer was stored
                raise RequestRefused(f"the input of step {task.step} was computed before (D5)")
            found = summand.contribute(request, self._folder)
            self._folder.save(_ASKED, msgspec.msgpack.encode(now))
            return found

        return task, compute

    @property
    def _own_summand(self) -> Summand:
        if self._summand is None:
            raise RequestRefused("this site adds nothing to sums")
        return self._summand

    def _begin(self, message: Begin) -> Joined:
        """Begin a session of sums, or find that it has begun."""
        terms = Terms(
            clients=message.clients,
            threshold=message.threshold,
            threat_model=message.threat_model,
            colluders=most_colluders(message.clients, message.threshold, message.threat_model),
            key_steps=message.key_steps,
            rejoin=message.rejoin,
            kinds=self._own_summand.kinds,
        )
        wanted = Session(
            message.session, {}, _NO_SPEC, message.identities, terms, history=beginning(message)
        )
        if not self._in_session(message.session):
            self._check_server(message, message.threat_model)
            check_terms(self._site_policy, terms)
            site_log.check_admission(self._folder, self._site_policy, message.session)
            self._start(wanted)
            self._remember(wanted)
        elif self._current.agreed != wanted.agreed:
            raise RequestRefused("the session is known, with other settings")
        proof = proof_of(self._settings, message.session, message.nonce)
        return Joined(VERSION, self._settings.client, proof, self._current.received)

    def _in_session(self, session: bytes) -> bool:
        return self._session is not None and self._session.session == session

    def _check_server(self, message: Begin | Hello, threat_model: object) -> None:
        """Refuse another version, and a session that is not of the site's key and roster.

        Args:
            message: begins the session; it has the version and everybody's public keys.
            threat_model: of the session. A site with a signing key accepts the malicious model
                only: otherwise a server could talk it into the weaker one.
        """
        check_version(message.version)
        settings = self._settings
        if (threat_model == "malicious") != (settings.identity is not None):
            raise RequestRefused(f"this site is not set up for the {threat_model} model")
        if message.identities != (settings.roster if settings.identity else ()):
            raise RequestRefused("the server's list of public keys is not this site's roster")

    def _start(
        self, session: Session, *, epsilon: float = 0.0, delta: float = 0.0, unit: str = "example"
    ) -> None:
        """Log a session, and erase what an older one left except what belongs to the identity.

        Args:
            session: that begins.
            epsilon: charged for the whole session; 0: without DP.
            delta: of that epsilon.
            unit: whom it protects, "example" or "client".
        """
        for name in self._folder.names():
            if name not in _OF_IDENTITY:
                self._folder.erase(name)
        roster = self._settings.roster
        digest = hashlib.sha256(b"".join(roster)).hexdigest() if roster else ""
        cost = {"epsilon": epsilon, "delta": delta}
        site_log.begin(self._folder, session, roster=digest, unit=unit, **cost)

    def _remember(self, session: Session) -> None:
        self._session = session
        self._folder.save(_SESSION, msgspec.msgpack.encode(session))

    @property
    def _current(self) -> Session:
        if self._session is None:
            raise RequestRefused(NO_SESSION)
        return self._session

    def _client(self, batch: Batch) -> StoredClient:
        """Return the protocol's client for a key batch, as the folder has it."""
        party = party_of(self._settings, self._site_policy, self._current, batch)
        return StoredClient(self._folder, party, os.urandom)
