"""Sums over sites: the server of `protocols`, whoever carries its messages; no learning here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from codream_secure.flower.sites import Sites
from codream_secure.flower.wire import (
    Advertise,
    Answer,
    Ask,
    Batch,
    Confirm,
    Message,
    Share,
    Unmask,
)
from protocols.driver import Direction
from protocols.errors import NotEnoughSurvivors, RemoteProtocolError, SecAggError
from protocols.params import BatchParams, Phase, Task, ThreatModel
from protocols.server import Finished, ServerSession

# Told of every message of the protocol: phase, direction, site, bytes.
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


class RemoteSums:
    """Sums over sites, by the same `ServerSession` as everywhere.

    A site that does not answer in time has dropped out of the step; it is asked again in the
    next one that its keys are good for, and in the next key exchange.

    Args:
        sites: who is asked.
        terms: of the session.
        record: told of every message.
    """

    def __init__(self, sites: Sites, terms: SumTerms, record: Record) -> None:
        self._sites, self._terms, self._record = sites, terms, record
        self._server: ServerSession | None = None
        self._batch = Batch(0, 1)
        self._batches = 0
        self._deliveries: dict[int, bytes] = {}

    def sum(self, task: Task, broadcast: bytes, key_steps: int) -> Finished:
        """Sum the sites' answers to a broadcast.

        Args:
            task: what is summed; its digest is that of the broadcast.
            broadcast: public bytes that every site is sent.
            key_steps: for how many steps keys are made, if there are none.

        Raises:
            NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        """
        try:
            return self._attempt(task, broadcast, key_steps)
        except RemoteProtocolError as error:
            raise NotEnoughSurvivors(Phase.UNMASKING, 0, self._terms.threshold) from error

    def _attempt(self, task: Task, broadcast: bytes, key_steps: int) -> Finished:
        server = self._ready(key_steps)
        try:
            requests = server.begin_step(task)
            self._down(Phase.MASKED_INPUT, requests)
            asks: dict[int, Message] = {}
            for site, request in requests.items():
                delivery = self._deliveries.get(site, b"")
                asks[site] = Ask(self._batch, task.step, request, broadcast, delivery)
            self._collect_inputs(server, asks)
            shown = server.end_round()
            if self._terms.malicious:
                shown = self._online(server, Phase.CONSISTENCY, shown, Confirm)
            self._online(server, Phase.UNMASKING, shown, Unmask)
            return server.result
        except SecAggError:
            server.abandon_step()
            raise
        finally:
            server.end_evidence()

    def _ready(self, key_steps: int) -> ServerSession:
        """Return the server with keys for the next step."""
        server, terms = self._server, self._terms
        least = min(terms.threshold + 1, len(terms.roster))
        if server is not None and server.keys_left and len(server.candidates) >= least:
            return server
        failure: NotEnoughSurvivors | None = None
        for _ in range(KEY_ATTEMPTS):
            try:
                return self._exchange_keys(key_steps)
            except NotEnoughSurvivors as error:
                failure = error
        raise failure or NotEnoughSurvivors(Phase.ADVERTISE_KEYS, 0, terms.threshold)

    def _exchange_keys(self, steps: int) -> ServerSession:
        self._server, self._batch = None, Batch(self._batches, steps)
        self._batches += 1
        terms = self._terms
        server = ServerSession(
            terms.batch(self._batch), rejoin=terms.rejoin if terms.malicious else None
        )
        present = [c for c in terms.roster if c in self._sites.present]
        advertise: dict[int, Message] = {c: Advertise(self._batch) for c in present}
        self._upload(server, Phase.ADVERTISE_KEYS, advertise)
        directories = server.end_round()
        share: dict[int, Message] = {c: Share(self._batch, d) for c, d in directories.items()}
        self._down(Phase.ADVERTISE_KEYS, directories)
        self._upload(server, Phase.SHARE_KEYS, share)
        self._deliveries = dict(server.end_round())
        self._down(Phase.SHARE_KEYS, self._deliveries)
        self._server = server
        return server

    def _upload(self, server: ServerSession, phase: Phase, asked: Mapping[int, Message]) -> None:
        for site, answer in self._sites.ask(asked).items():
            self._take(server, phase, site, answer.data)

    def _online(
        self,
        server: ServerSession,
        phase: Phase,
        shown: Mapping[int, bytes],
        kind: type[Confirm | Unmask],
    ) -> Mapping[int, bytes]:
        self._down(phase, shown)
        self._upload(server, phase, {c: kind(self._batch, data) for c, data in shown.items()})
        return server.end_round()

    def _collect_inputs(self, server: ServerSession, asked: Mapping[int, Message]) -> None:
        for site, answer in self._sites.ask(asked).items():
            self._deliveries.pop(site, None)
            self._take_input(server, site, answer)

    def _take_input(self, server: ServerSession, site: int, answer: Answer) -> None:
        if answer.report:
            self._take(server, Phase.SHARE_KEYS, site, answer.report)
        self._take(server, Phase.MASKED_INPUT, site, answer.data)

    def _take(self, server: ServerSession, phase: Phase, site: int, data: bytes) -> None:
        self._record(phase, "up", site, len(data))
        try:
            server.receive(site, data)
        except SecAggError as error:
            self._sites.tell(f"site {site} sent what cannot be used: {error}")

    def _down(self, phase: Phase, replies: Mapping[int, bytes]) -> None:
        for site, data in replies.items():
            self._record(phase, "down", site, len(data))
