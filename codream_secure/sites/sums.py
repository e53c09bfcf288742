"""The server of secure sums over sites; it knows neither the carrier nor any learning."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256

import msgspec

from codream_secure.sites.history import SIZE, beginning, bound
from codream_secure.sites.peers import Carry, Sites, Tell
from codream_secure.sites.presence import Doorkeeper, fresh_nonce
from codream_secure.sites.record import Record, aborted, summed
from codream_secure.sites.wire import (
    VERSION,
    Advertise,
    Answer,
    Ask,
    Batch,
    Begin,
    Confirm,
    Deliver,
    Joined,
    Message,
    Share,
    Unmask,
    decode_joined,
)
from protocols.errors import NotEnoughSurvivors, RemoteProtocolError, SecAggError
from protocols.params import KEY_ATTEMPTS, Section, Task, Terms, default_threshold
from protocols.phases import OPEN_BUNDLES, Phase, ThreatModel
from protocols.rounds import Ask as AskFunction
from protocols.rounds import Direction, Part, SumRounds
from protocols.server.step import Finished

# Called for every protocol message that the server could use: phase, direction, site, bytes.
Tap = Callable[[Phase, Direction, int, int], None]


class RemoteSums:
    """Sums over sites: `protocols.rounds`, whose messages sites carry.

    A site that does not answer in time has dropped out of the step. It is asked again in the next
    step that its keys are good for, and in the next key exchange.

    Args:
        sites: the sites.
        terms: of the session.
        record: the session's; every step is bound to it, and added to it when it is over.
        tap: called for every message that the server could use.
        first_batch: number of the first key batch; larger than any that the session has had (D6).
        note_batch: called before a key batch is made, with the number of the one after it. It
            must write the number down: a restarted server begins with it.
    """

    def __init__(
        self,
        sites: Sites,
        terms: Terms,
        record: Record,
        tap: Tap = lambda *_: None,
        *,
        first_batch: int = 0,
        note_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._sites, self._terms, self.record = sites, terms, record
        self._rounds = SumRounds(
            terms,
            tap=lambda phase, direction, site, data: tap(phase, direction, site, len(data)),
            fault=self._refused,
            present=self._present,
            expected=lambda: [site for site in self._present() if sites.awaited(site)],
            wrong=self._wrong,
            entropy=os.urandom,
            first_batch=first_batch,
            note_batch=note_batch,
        )

    def sum(self, task: Task, public: bytes, key_steps: int, *, next_steps: int = 0) -> Finished:
        """Sum the sites' answers to a broadcast.

        Args:
            task: what is summed; it contains the digest of `public`.
            public: bytes that every site receives: the record's digest, then the request.
            key_steps: number of steps of the key batch that is made if none is left.
            next_steps: number of steps of the next key batch. It is made together with the last
                step of this one, without a round trip of its own (D17); 0: it is not made.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        """

        def ask(parts: Sequence[Part]) -> list[dict[int, bytes]]:
            return self._ask(parts, task.step, public)

        request = public[SIZE:]
        try:
            found = self._summed(ask, task, key_steps, next_steps)
        except NotEnoughSurvivors:
            self.record.add(aborted(task.step, request))
            raise
        self.record.add(summed(task.step, request, self._terms, found))
        return found

    def _summed(self, ask: AskFunction, task: Task, key_steps: int, next_steps: int) -> Finished:
        rounds = self._rounds
        try:
            if rounds.needs_keys:
                rounds.prepare(key_steps, self._attempts(ask))
            return rounds.step(ask, task, renew=next_steps if rounds.keys_left == 1 else 0)
        except RemoteProtocolError as error:
            self._sites.tell(f"step {task.step} gave no sum: {error}")
            raise NotEnoughSurvivors(Phase.UNMASKING, 0, self._terms.threshold) from error

    def _attempts(self, ask: AskFunction) -> Iterator[AskFunction]:
        """Repeat the key exchange as long as each attempt gains sites.

        A site keeps only the records of neighbouring batches. After two attempts without gain it
        would erase those of the best batch.
        """
        best = len(self._rounds.candidates)
        for _ in range(KEY_ATTEMPTS):
            yield ask
            found = len(self._rounds.candidates)
            if best and found <= best:
                return
            best = found

    def _present(self) -> list[int]:
        return [site for site in self._terms.roster if site in self._sites.present]

    def _refused(self, site: int, error: SecAggError) -> None:
        self._sites.tell(f"site {site} sent what cannot be used: {error}")

    def _wrong(self, sites: frozenset[int]) -> None:
        listed = ", ".join(map(str, sorted(sites)))
        self._sites.tell(f"shares of sites {listed} were wrong, or dealt wrong; the sum is exact")

    def _ask(self, parts: Sequence[Part], step: int, public: bytes) -> list[dict[int, bytes]]:
        """Send every site one message with all of its parts, and split the answers.

        A site outside the step gets only its message of the next key exchange.
        """
        bundles = {part.stage: part.messages for part in parts}.get(OPEN_BUNDLES, {})
        others = [part for part in parts if part.stage != OPEN_BUNDLES]
        main, *riding = others or parts
        exchange = {site: _key_message(part, site) for part in riding for site in part.messages}
        asked: dict[int, Message] = dict(exchange)
        for site, data in main.messages.items():
            batch, along = _batch(main), exchange.get(site)
            if main.stage == Phase.MASKED_INPUT and not isinstance(along, Share):
                delivery = bundles.get(site, b"")
                missed = self.record.missed(site)
                asked[site] = Ask(batch, step, data, public, delivery, along, missed)
            elif main.stage == Phase.UNMASKING and not isinstance(along, Advertise):
                asked[site] = Unmask(batch, data, along)
            elif main.stage == Phase.CONSISTENCY:
                asked[site] = Confirm(batch, data)
            elif main.stage == OPEN_BUNDLES:
                asked[site] = Deliver(batch, data)
            else:
                asked[site] = _key_message(main, site)
        answers = self._sites.ask(asked)
        for site, message in asked.items():
            if isinstance(message, Ask) and site in answers and not answers[site].refused:
                self.record.passed(site, len(message.missed))
        return [_answers(part, main, answers) for part in parts]


def _batch(part: Part) -> Batch:
    return Batch(part.batch.batch, part.batch.steps)


def _key_message(part: Part, site: int) -> Advertise | Share:
    """Return the message of a stage of a key exchange."""
    if part.stage == Phase.ADVERTISE_KEYS:
        return Advertise(_batch(part))
    return Share(_batch(part), part.messages[site])


def _answers(part: Part, main: Part, answers: Mapping[int, Answer]) -> dict[int, bytes]:
    """Return the answers to one part. A site may refuse the step and answer the key exchange."""
    there = {site: answers[site] for site in part.messages if site in answers}
    if part.stage == OPEN_BUNDLES and part is not main:
        # A site that refuses the step because bundles do not open still says which.
        told = {site: a for site, a in there.items() if a.report or not a.refused}
        return {site: answer.report for site, answer in told.items()}
    if part is main:
        return {site: answer.data for site, answer in there.items() if not answer.refused}
    found = {s: a.key_exchange if s in main.messages else a.data for s, a in there.items()}
    return {site: data for site, data in found.items() if data}


class SumServer:
    """The server of one session of sums without learning.

    Args:
        carry: sends bytes to sites and returns their answers.
        clients: number of sites; they are numbered from 0.
        threshold: t, sites that must answer every round; None: the default.
        threat_model: what the sites assume of the server.
        identities: public keys in roster order, in the malicious model.
        rejoin: malicious model: whether a site that missed a step may take part in the next one.
        key_steps: M, the number of steps that one key exchange makes keys for.
        tell: called with one line for each thing that went wrong.

    Attributes:
        sites: the sites, and the traffic with them.
        door: checks who a site is.
        terms: of the session.
        step: number of the next step.

    Raises:
        ConfigError: the protocol does not allow these terms.
    """

    def __init__(
        self,
        carry: Carry,
        *,
        clients: int,
        threshold: int | None = None,
        threat_model: ThreatModel = "semi-honest",
        identities: tuple[bytes, ...] = (),
        rejoin: bool = False,
        key_steps: int = 16,
        tell: Tell = lambda _: None,
    ) -> None:
        self.terms = Terms(
            session=os.urandom(32),
            roster=tuple(range(clients)),
            threshold=default_threshold(clients) if threshold is None else threshold,
            threat_model=threat_model,
            identities=identities,
            rejoin=rejoin,
        )
        self.sites = Sites(carry, self.terms.roster, tell)
        self.door = Doorkeeper(self.terms.session, identities)
        self.step = 0
        self._tell, self._key_steps = tell, key_steps
        self._begin = self._beginning()
        self._sums = RemoteSums(self.sites, self.terms, Record(beginning(self._begin)))

    def greet(self) -> None:
        """Begin the session at every site that has not joined it."""
        missing = [site for site in self.terms.roster if site not in self.sites.present]
        begin = self._begin
        asked = {site: msgspec.structs.replace(begin, nonce=fresh_nonce()) for site in missing}
        for site, answer in self.sites.ask(asked).items():
            self._join(site, asked[site].nonce, answer.data)

    def _beginning(self) -> Begin:
        terms = self.terms
        return Begin(
            version=VERSION,
            session=terms.session,
            clients=len(terms.roster),
            threshold=terms.threshold,
            threat_model=terms.threat_model,
            key_steps=self._key_steps,
            rejoin=terms.rejoin,
            identities=terms.identities,
        )

    def _join(self, site: int, nonce: bytes, data: bytes) -> None:
        """Admit a site to the session, or say why it cannot take part."""
        try:
            found = decode_joined(data)
        except msgspec.DecodeError as error:
            proven = self.door.admits(site, nonce, b"")
            self.sites.admit(site, f"it sent what cannot be used: {error}", proven=proven)
            return
        proven = self.door.admits(site, nonce, found.proof)
        if self.sites.admit(site, self._unfit(site, found), proven=proven):
            self._sums.record.joined(site, found.received)

    def _unfit(self, site: int, found: Joined) -> str:
        """Return why a site cannot take part, from its answer; empty if it can."""
        if found.version != VERSION:
            return f"it speaks version {found.version}, not {VERSION}"
        if found.client != site:
            return f"it says that it is site {found.client}"
        return ""

    def sum(
        self, kind: str, sections: tuple[Section, ...], broadcast: Callable[[int], bytes]
    ) -> Finished:
        """Run the next step, and return its sum.

        Args:
            kind: kind of the sum, which sites must know.
            sections: the parts of every site's input.
            broadcast: returns the public bytes for the sites, from the step's number.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        """
        step, self.step = self.step, self.step + 1
        self.greet()
        present, needed = len(self.sites.present), self.terms.threshold
        if present < needed:
            raise NotEnoughSurvivors(Phase.ADVERTISE_KEYS, present, needed)
        public = bound(self._sums.record.digest, broadcast(step))
        task = Task(
            step=step,
            kind=kind,
            sections=sections,
            broadcast_digest=sha256(public).digest(),
        )
        return self._sums.sum(task, public, self._key_steps)
