"""Sums over sites: the server of `protocols`, whoever carries its messages; no learning here."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from codream_secure.sites.peers import Carry, Sites, Tell
from codream_secure.sites.wire import (
    VERSION,
    Advertise,
    Answer,
    Ask,
    Batch,
    Begin,
    Confirm,
    Evidence,
    Joined,
    Message,
    Share,
    Unmask,
    decode_joined,
)
from protocols.errors import NotEnoughSurvivors, RemoteProtocolError, SecAggError
from protocols.params import BatchParams, Section, Task, default_threshold
from protocols.phases import Phase, ThreatModel
from protocols.rounds import Direction
from protocols.server.session import ServerSession
from protocols.server.step import Finished

# Told of every message of the protocol that was of use: phase, direction, site, bytes.
Record = Callable[[Phase, Direction, int, int], None]
KEY_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SumTerms:
    """What the server and all sites agree on for a session.

    Attributes:
        session: 32 public bytes, of this session alone.
        roster: numbers of the sites, ascending.
        threshold: t, sites that must answer every round.
        threat_model: whom the sites take the server for.
        identities: public keys in roster order, in the malicious model.
        rejoin: malicious model: whether a site that missed a step may be back in the next one.
    """

    session: bytes
    roster: tuple[int, ...]
    threshold: int
    threat_model: ThreatModel = "semi-honest"
    identities: tuple[bytes, ...] = ()
    rejoin: bool = False

    @property
    def malicious(self) -> bool:
        """Whether messages are signed and survivor sets compared."""
        return self.threat_model == "malicious"

    def batch(self, batch: Batch) -> BatchParams:
        """Return the parameters of a batch of keys."""
        return BatchParams(
            session=self.session,
            batch=batch.number,
            steps=batch.steps,
            roster=self.roster,
            threshold=self.threshold,
            threat_model=self.threat_model,
            identities=self.identities,
        )


@dataclass(slots=True)
class _Keys:
    """A batch of keys, on the server's side.

    ``deliveries``: bundles by site, which travel with the batch's first step.
    """

    batch: Batch
    server: ServerSession
    directories: Mapping[int, bytes] = field(default_factory=dict)
    deliveries: dict[int, bytes] = field(default_factory=dict)

    @property
    def sharers(self) -> tuple[int, ...]:
        """Sites that can be active in its steps."""
        return self.server.candidates


class RemoteSums:
    """Sums over sites, by the same `ServerSession` as everywhere.

    A site that does not answer in time has dropped out of the step; it is asked again in the
    next one that its keys are good for, and in the next key exchange.

    Args:
        sites: who is asked.
        terms: of the session.
        record: told of every message.
        first_batch: number of the first batch of keys; above all that the session has had (D6).
        note_batch: told the number of the batch after the one that is about to be made. What it
            writes down before it returns is where a server that starts again goes on.
    """

    def __init__(
        self,
        sites: Sites,
        terms: SumTerms,
        record: Record,
        *,
        first_batch: int = 0,
        note_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._sites, self._terms, self._record = sites, terms, record
        self._batches, self._note_batch = first_batch, note_batch
        self._keys: _Keys | None = None
        self._next: _Keys | None = None

    def sum(self, task: Task, broadcast: bytes, key_steps: int, *, next_steps: int = 0) -> Finished:
        """Sum the sites' answers to a broadcast.

        Args:
            task: what is summed; its digest is that of the broadcast.
            broadcast: public bytes that every site is sent.
            key_steps: for how many steps keys are made, if there are none.
            next_steps: if this step uses the last keys: for how many steps the next ones are made
                on its way, without a round trip of their own (D17); 0: not.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        """
        try:
            return self._attempt(task, broadcast, key_steps, next_steps)
        except RemoteProtocolError as error:
            raise NotEnoughSurvivors(Phase.UNMASKING, 0, self._terms.threshold) from error

    def _attempt(self, task: Task, broadcast: bytes, key_steps: int, next_steps: int) -> Finished:
        keys = self._ready(key_steps)
        server = keys.server
        try:
            requests = server.begin_step(task)
            coming = None if server.keys_left or not next_steps else self._new_keys(next_steps)
            self._collect_inputs(keys, task, broadcast, requests, coming)
            shown = server.end_round()
            if self._terms.malicious:
                shown = self._confirm(keys, shown)
            self._unmask(keys, shown, coming)
            server.end_round()
            return server.result
        except SecAggError:
            server.abandon_step()
            raise
        finally:
            self._ask_for_evidence(keys)

    # Keys -----------------------------------------------------------------------------------

    def _ready(self, key_steps: int) -> _Keys:
        """Return keys for the next step: those that there are, or new ones.

        An exchange that rode with a step counts as the first attempt. Another one follows while
        a site is missing that can be expected to take part, and as long as that helps (D13).
        """
        least = min(self._terms.threshold + 1, len(self._terms.roster))
        if self._keys and self._keys.server.keys_left and len(self._keys.sharers) >= least:
            return self._keys
        best, self._keys, self._next = self._next, None, None
        failure: NotEnoughSurvivors | None = None
        for _ in range(KEY_ATTEMPTS):
            if best is not None and self._complete(best):
                break
            try:
                found = self._exchange_keys(key_steps)
            except NotEnoughSurvivors as error:
                failure = error
                if best is not None:
                    break
                continue
            if best is not None and len(found.sharers) <= len(best.sharers):
                break
            best = found
        if best is None:
            raise failure or NotEnoughSurvivors(Phase.ADVERTISE_KEYS, 0, self._terms.threshold)
        self._keys = best
        return best

    @property
    def _present(self) -> list[int]:
        return [site for site in self._terms.roster if site in self._sites.present]

    def _complete(self, keys: _Keys) -> bool:
        missing = set(self._present) - set(keys.sharers)
        return not any(map(self._sites.awaited, missing))

    def _new_keys(self, steps: int) -> _Keys:
        """Begin a batch with a number that no batch of the session has had."""
        batch, terms = Batch(self._batches, steps), self._terms
        self._note_batch(self._batches + 1)
        self._batches += 1
        rejoin = terms.rejoin if terms.malicious else None
        return _Keys(batch, ServerSession(terms.batch(batch), rejoin=rejoin))

    def _exchange_keys(self, steps: int) -> _Keys:
        """Make keys in two round trips."""
        keys = self._new_keys(steps)
        advertise: dict[int, Message] = dict.fromkeys(self._present, Advertise(keys.batch))
        self._end_advertise(keys, _data(self._sites.ask(advertise)))
        share: dict[int, Message] = dict(_shares(keys))
        self._end_share(keys, _data(self._sites.ask(share)))
        return keys

    def _end_advertise(self, keys: _Keys, answers: Mapping[int, bytes]) -> None:
        self._upload(keys.server, Phase.ADVERTISE_KEYS, answers)
        keys.directories = keys.server.end_round()
        self._down(Phase.ADVERTISE_KEYS, keys.directories)

    def _end_share(self, keys: _Keys, answers: Mapping[int, bytes]) -> None:
        self._upload(keys.server, Phase.SHARE_KEYS, answers)
        keys.deliveries = dict(keys.server.end_round())
        self._down(Phase.SHARE_KEYS, keys.deliveries)

    # A step ---------------------------------------------------------------------------------

    def _collect_inputs(
        self,
        keys: _Keys,
        task: Task,
        broadcast: bytes,
        requests: Mapping[int, bytes],
        coming: _Keys | None,
    ) -> None:
        """Round 2, and round 0 of the batch that is coming; who has no step has only that."""
        self._down(Phase.MASKED_INPUT, requests)
        beside = None if coming is None else Advertise(coming.batch)
        asked: dict[int, Message] = {}
        if beside is not None:
            asked = dict.fromkeys(self._present, beside)
        for site, request in requests.items():
            delivery = keys.deliveries.get(site, b"")
            asked[site] = Ask(keys.batch, task.step, request, broadcast, delivery, beside)
        answers = self._sites.ask(asked)
        for site in sorted(set(answers) & set(requests)):
            if not answers[site].refused:
                keys.deliveries.pop(site, None)
                self._take_input(keys.server, site, answers[site])
        if coming is not None:
            with contextlib.suppress(NotEnoughSurvivors):
                self._end_advertise(coming, _beside(answers, requests))

    def _confirm(self, keys: _Keys, shown: Mapping[int, bytes]) -> Mapping[int, bytes]:
        self._down(Phase.CONSISTENCY, shown)
        asked: dict[int, Message] = {c: Confirm(keys.batch, data) for c, data in shown.items()}
        self._upload(keys.server, Phase.CONSISTENCY, _data(self._sites.ask(asked)))
        return keys.server.end_round()

    def _unmask(self, keys: _Keys, shown: Mapping[int, bytes], coming: _Keys | None) -> None:
        """Round 3, and round 1 of the batch that is coming."""
        self._down(Phase.UNMASKING, shown)
        beside = {} if coming is None else _shares(coming)
        asked: dict[int, Message] = dict(beside)
        for site, data in shown.items():
            asked[site] = Unmask(keys.batch, data, beside.get(site))
        answers = self._sites.ask(asked)
        unmasked = {c: a for c, a in answers.items() if c in shown and not a.refused}
        self._upload(keys.server, Phase.UNMASKING, _data(unmasked))
        if coming is not None and beside:
            with contextlib.suppress(NotEnoughSurvivors):
                self._end_share(coming, _beside(answers, shown))
                self._next = coming

    def _ask_for_evidence(self, keys: _Keys) -> None:
        """Find out who dealt or gave the shares that did not fit, if any (SPEC 6.10)."""
        requests = keys.server.evidence_requests()
        self._down(Phase.UNMASKING, requests)
        asked: dict[int, Message] = {c: Evidence(keys.batch, data) for c, data in requests.items()}
        self._upload(keys.server, Phase.UNMASKING, _data(self._sites.ask(asked)))
        for site in sorted(keys.server.end_evidence()):
            self._sites.tell(f"site {site} gave or dealt wrong shares, and is left out")

    def _take_input(self, server: ServerSession, site: int, answer: Answer) -> None:
        if answer.report:
            self._take(server, Phase.SHARE_KEYS, site, answer.report)
        self._take(server, Phase.MASKED_INPUT, site, answer.data)

    def _upload(self, server: ServerSession, phase: Phase, answers: Mapping[int, bytes]) -> None:
        for site, data in answers.items():
            self._take(server, phase, site, data)

    def _take(self, server: ServerSession, phase: Phase, site: int, data: bytes) -> None:
        try:
            due = server.receive(site, data)
        except SecAggError as error:
            self._sites.tell(f"site {site} sent what cannot be used: {error}")
            return
        if due:
            self._record(phase, "up", site, len(data))

    def _down(self, phase: Phase, replies: Mapping[int, bytes]) -> None:
        for site, data in replies.items():
            self._record(phase, "down", site, len(data))


def _shares(keys: _Keys) -> dict[int, Share]:
    return {site: Share(keys.batch, data) for site, data in keys.directories.items()}


def _data(answers: Mapping[int, Answer]) -> dict[int, bytes]:
    return {site: answer.data for site, answer in answers.items()}


def _beside(answers: Mapping[int, Answer], asked: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return the answers to what rode along, or was sent alone to who was not ``asked`` more."""
    found = {c: a.beside if c in asked else a.data for c, a in answers.items()}
    return {site: data for site, data in found.items() if data}


class SumServer:
    """A session of sums.

    Args:
        carry: moves bytes.
        clients: sites, numbered from 0.
        threshold: t, sites that must answer every round; None: the default.
        threat_model: whom the sites take the server for.
        identities: public keys in roster order, in the malicious model.
        rejoin: malicious model: whether a site that missed a step may be back in the next one.
        key_steps: for how many steps keys are made in one exchange.
        tell: told what went wrong, a line each.

    Attributes:
        sites: who is asked, and what moved.
        terms: of the session.
        step: number of the next step.

    Raises:
        ConfigError: the terms are not those of any session.
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
        self.terms = SumTerms(
            session=os.urandom(32),
            roster=tuple(range(clients)),
            threshold=default_threshold(clients) if threshold is None else threshold,
            threat_model=threat_model,
            identities=identities,
            rejoin=rejoin,
        )
        self.sites = Sites(carry, self.terms.roster, tell)
        self.step = 0
        self._tell, self._key_steps = tell, key_steps
        self._sums = RemoteSums(self.sites, self.terms, lambda *_: None)

    def greet(self) -> None:
        """Begin the session at every site that is not in it."""
        terms = self.terms
        begin = Begin(
            version=VERSION,
            session=terms.session,
            clients=len(terms.roster),
            threshold=terms.threshold,
            threat_model=terms.threat_model,
            key_steps=self._key_steps,
            rejoin=terms.rejoin,
            identities=terms.identities,
        )
        missing = [site for site in terms.roster if site not in self.sites.present]
        for site, answer in self.sites.ask(dict.fromkeys(missing, begin)).items():
            if reason := self._unfit(site, answer.data):
                self._tell(f"site {site} cannot take part: {reason}")
                self.sites.unfit.add(site)
            else:
                self.sites.present.add(site)

    def _unfit(self, site: int, data: bytes) -> str:
        try:
            found: Joined = decode_joined(data)
        except msgspec.DecodeError as error:
            return f"it sent what cannot be used: {error}"
        if found.version != VERSION:
            return f"it speaks version {found.version}, not {VERSION}"
        if found.client != site:
            return f"it says that it is site {found.client}"
        if self.terms.malicious and found.identity != self.terms.identities[site]:
            return "its signing key is not the one in the roster"
        return ""

    def sum(
        self, kind: str, sections: tuple[Section, ...], broadcast: Callable[[int], bytes]
    ) -> Finished:
        """Take the next step.

        Args:
            kind: what is summed.
            sections: of every site's input.
            broadcast: makes the public bytes that sites are sent, from the step's number.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        """
        step, self.step = self.step, self.step + 1
        self.greet()
        present, needed = len(self.sites.present), self.terms.threshold
        if present < needed:
            raise NotEnoughSurvivors(Phase.ADVERTISE_KEYS, present, needed)
        public = broadcast(step)
        task = Task(
            step=step,
            kind=kind,
            sections=sections,
            broadcast_digest=hashlib.sha256(public).digest(),
        )
        return self._sums.sum(task, public, self._key_steps)
