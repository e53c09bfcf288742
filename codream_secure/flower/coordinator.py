"""The server of a run over many machines: the same dreams, sums and student as in a simulation.

Read `Coordinator.run` first. It knows sites by number, and messages as bytes: whoever carries them
(Flower's grid, or a test) gives it one function.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from codream_secure.acquisition import distil, learn_images
from codream_secure.aggregation import (
    Aggregator,
    Call,
    FieldSum,
    Inputs,
    Meters,
)
from codream_secure.attendance import AggregationSettings
from codream_secure.communication import ByteLedger, Direction
from codream_secure.config import Config, set_
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dream_group import DreamGroup
from codream_secure.dreaming.pixels import PixelScale
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import StepAborted, UserError
from codream_secure.federation import run_model
from codream_secure.flower.learning import aggregation_settings
from codream_secure.flower.wire import (
    VERSION,
    Advertise,
    Answer,
    Ask,
    Batch,
    Confirm,
    Hello,
    Images,
    Learn,
    Message,
    Present,
    Share,
    Unmask,
    decode_answer,
    decode_present,
    encode,
)
from codream_secure.learner import PlainLearner
from codream_secure.parallel import one_core_each
from codream_secure.privacy.class_statistics import ClassImages
from codream_secure.resolve import resolve
from codream_secure.schedule import learning_settings
from codream_secure.seeds import generator
from protocols.driver import DropSchedule
from protocols.errors import NotEnoughSurvivors, RemoteProtocolError, SecAggError
from protocols.params import BatchParams, Phase
from protocols.server import ServerSession

# Takes encoded messages by site, returns the encoded answers of those that answered in time.
Carry = Callable[[Mapping[int, bytes]], Mapping[int, bytes]]
Tell = Callable[[str], None]
KEY_ATTEMPTS = 3


@dataclass(slots=True)
class Traffic:
    """What really moved, in bytes of message bodies, and how often the server waited."""

    down: int = 0
    up: int = 0
    messages: int = 0
    round_trips: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Sites:
    """The sites of a run, as the server sees them.

    Args:
        carry: moves bytes.
        roster: numbers of the sites.
        tell: told what went wrong, a line each.

    Attributes:
        traffic: what moved so far.
        refused: by site, the last reason that it gave.
        present: sites that take part in the session.
        unfit: sites that cannot take part, and are asked nothing more.
    """

    carry: Carry
    roster: tuple[int, ...]
    tell: Tell
    traffic: Traffic = field(default_factory=Traffic)
    refused: dict[int, str] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    unfit: set[int] = field(default_factory=set)

    def ask(self, messages: Mapping[int, Message]) -> dict[int, Answer]:
        """Send messages and wait; sites that refuse, or are not heard of, have no answer."""
        encoded = {s: encode(m) for s, m in messages.items() if s not in self.unfit}
        if not encoded:
            return {}
        began = time.monotonic()
        replies = self.carry(encoded)
        traffic = self.traffic
        traffic.seconds += time.monotonic() - began
        traffic.round_trips += 1
        traffic.messages += len(encoded)
        traffic.down += sum(map(len, encoded.values()))
        traffic.up += sum(map(len, replies.values()))
        found = {}
        for site, data in sorted(replies.items()):
            try:
                answer = decode_answer(data)
            except msgspec.DecodeError as error:
                answer = Answer(refused=f"not an answer: {error}")
            if answer.refused:
                self.refused[site] = answer.refused
                self.tell(f"site {site} refused: {answer.refused}")
            else:
                found[site] = answer
        for site in sorted(set(encoded) - set(replies)):
            self.tell(f"site {site} did not answer")
        return found


class RemoteAggregator(Aggregator):
    """Sums over sites, by the same `ServerSession` as everywhere.

    A site that does not answer in time has dropped out of the step; it is asked again in the
    next one that its keys are good for, and in the next key exchange.

    Args:
        sites: who is asked.
        settings: roster, threshold, threat model.
        meters: bytes and seconds.
        session: 32 public bytes of this run.
        identities: public keys in roster order, in the malicious model.
    """

    def __init__(
        self,
        sites: Sites,
        settings: AggregationSettings,
        meters: Meters,
        *,
        session: bytes,
        identities: tuple[bytes, ...],
    ) -> None:
        super().__init__({}, settings, meters)
        self._sites, self._session_id, self._identities = sites, session, identities
        self._server: ServerSession | None = None
        self._batch = Batch(0, 1)
        self._batches = 0
        self._deliveries: dict[int, bytes] = {}
        self.labels: list[bytes] = []
        self.published = self.labels.append

    @property
    def _round_trips(self) -> int:
        return self._sites.traffic.round_trips

    def _renew_lost_keys(self) -> None:
        """Keys are made when the next step needs some."""

    def _make_keys(self, call: Call, steps: int, attempts: object) -> None:
        """Not used: `_sum` makes keys."""

    def _aggregate(self, call: Call, inputs: Inputs, drops: DropSchedule, renew: int) -> FieldSum:
        raise NotImplementedError

    def _sum(self, call: Call) -> FieldSum:
        try:
            return self._attempt(call)
        except RemoteProtocolError as error:
            raise NotEnoughSurvivors(Phase.UNMASKING, 0, self.threshold) from error

    def _attempt(self, call: Call) -> FieldSum:
        server = self._ready(call.step)
        task = call.task
        try:
            requests = server.begin_step(task)
            asks: dict[int, Message] = {}
            for site, request in requests.items():
                delivery = self._deliveries.get(site, b"")
                asks[site] = Ask(self._batch, call.step, request, call.broadcast, delivery)
                self._count(Phase.MASKED_INPUT, "down", site, len(request), call.request)
                self._record("broadcast", "down", site, len(call.broadcast))
            answers = self._receive(Phase.MASKED_INPUT, asks, call)
            for site in answers:
                self._deliveries.pop(site, None)
            shown = server.end_round()
            if self._settings.threat_model == "malicious":
                shown = self._online(Phase.CONSISTENCY, shown, Confirm)
            self._online(Phase.UNMASKING, shown, Unmask)
            result = server.result
            return FieldSum(dict(result.totals), len(result.survivors), task.sections)
        except SecAggError:
            server.abandon_step()
            raise
        finally:
            server.end_evidence()

    def _ready(self, step: int) -> ServerSession:
        """Return the server with keys for the next step."""
        server = self._server
        least = min(self.threshold + 1, len(self._settings.roster))
        if server is not None and server.keys_left and len(server.candidates) >= least:
            return server
        failure: NotEnoughSurvivors | None = None
        for _ in range(KEY_ATTEMPTS):
            try:
                self._exchange_keys(max(1, self._settings.batch_steps(step)))
            except NotEnoughSurvivors as error:
                failure = error
                continue
            if self._server is not None:
                return self._server
        raise failure or NotEnoughSurvivors(Phase.ADVERTISE_KEYS, 0, self.threshold)

    def _exchange_keys(self, steps: int) -> None:
        self._server, self._batch = None, Batch(self._batches, steps)
        self._batches += 1
        settings = self._settings
        server = ServerSession(
            BatchParams(
                session=self._session_id,
                batch=self._batch.number,
                steps=steps,
                roster=settings.roster,
                threshold=settings.needed,
                threat_model=settings.threat_model,
                identities=self._identities,
            ),
            rejoin=settings.rejoin if settings.threat_model == "malicious" else None,
        )
        advertise: dict[int, Message] = {c: Advertise(self._batch) for c in settings.roster}
        self._offline(server, Phase.ADVERTISE_KEYS, advertise)
        directories = server.end_round()
        share: dict[int, Message] = {c: Share(self._batch, d) for c, d in directories.items()}
        self._down(Phase.ADVERTISE_KEYS, directories)
        self._offline(server, Phase.SHARE_KEYS, share)
        self._deliveries = dict(server.end_round())
        self._down(Phase.SHARE_KEYS, self._deliveries)
        self._server = server

    def _offline(self, server: ServerSession, phase: Phase, asked: Mapping[int, Message]) -> None:
        for site, answer in self._sites.ask(asked).items():
            self._record(phase, "up", site, len(answer.data))
            self._take(server, site, answer.data)

    def _online(
        self, phase: Phase, shown: Mapping[int, bytes], kind: type[Confirm | Unmask]
    ) -> Mapping[int, bytes]:
        self._down(phase, shown)
        asked: dict[int, Message] = {c: kind(self._batch, data) for c, data in shown.items()}
        if self._server is None:
            raise ValueError("no keys")
        self._offline(self._server, phase, asked)
        return self._server.end_round()

    def _receive(
        self, phase: Phase, asked: Mapping[int, Message], call: Call
    ) -> Mapping[int, Answer]:
        if self._server is None:
            raise ValueError("no keys")
        answers = self._sites.ask(asked)
        for site, answer in answers.items():
            if answer.report:
                self._record(Phase.SHARE_KEYS, "up", site, len(answer.report))
                self._take(self._server, site, answer.report)
            self._count(phase, "up", site, len(answer.data), call.request)
            self._take(self._server, site, answer.data)
        return answers

    def _take(self, server: ServerSession, site: int, data: bytes) -> None:
        try:
            server.receive(site, data)
        except SecAggError as error:
            self._sites.tell(f"site {site} sent what cannot be used: {error}")

    def _down(self, phase: Phase, replies: Mapping[int, bytes]) -> None:
        for site, data in replies.items():
            self._record(phase, "down", site, len(data))

    def _record(self, phase: Phase | str, direction: Direction, site: int, size: int) -> None:
        self._meters.ledger.record(phase, direction, size, client=site)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the server tells of a round; all of it is public.

    Attributes:
        number: from 1.
        dreams: labelled batches.
        digest: SHA-256 of their pixels, in hex.
        server: accuracy of the server's student on public test data, if there are some.
        learned: how many sites learned from them.
    """

    number: int
    dreams: tuple[LabelledDreams, ...]
    digest: str
    server: float | None
    learned: int


class Coordinator:
    """One run over sites.

    Args:
        config: of the run; ``data.clients`` sites.
        spec: shape of an image and number of classes, public.
        scaling: public.
        share: examples of a site if they were dealt evenly, public.
        carry: moves bytes.
        session: 32 public bytes, of this run alone.
        identities: public keys in roster order, in the malicious model.
        test: public test data, scaled images and labels; None: there are none.
        tell: told what went wrong.

    Raises:
        UserError: settings that cannot be run over machines.
    """

    def __init__(
        self,
        config: Config,
        *,
        spec: InputSpec,
        scaling: Scaling,
        share: int,
        carry: Carry,
        session: bytes | None = None,
        identities: tuple[bytes, ...] = (),
        test: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
        tell: Tell = lambda _: None,
    ) -> None:
        self.config = resolve(config)
        if not (self.config.secure.secure and self.config.dream.collaboration):
            raise UserError("over machines sums are always masked, and dreams made together")
        if self.config.private_clients:
            raise UserError("--dp-unit client is for simulations; over machines use example")
        self._spec, self._scaling, self._share = spec, scaling, share
        self._identities, self._test, self._tell = identities, test, tell
        self.session = session or os.urandom(32)
        settings = aggregation_settings(self.config)
        self.sites = Sites(carry, settings.roster, tell)
        self.ledger = ByteLedger(settings.roster)
        self.aggregator = RemoteAggregator(
            self.sites,
            settings,
            Meters(self.ledger),
            session=self.session,
            identities=identities,
        )
        device = torch.device("cpu")
        self._scale = PixelScale(scaling, device)
        self._group = DreamGroup((), (), self.aggregator, self.config, spec, self._scale, device, 0)
        self.student = self._build_student()

    def run(self) -> Iterator[Round]:
        """Run round after round; sites that were not there at first may come later.

        Raises:
            UserError: fewer sites than the threshold can take part.
        """
        with one_core_each():
            self._greet()
            if len(self.sites.present) < self.aggregator.threshold:
                raise UserError(
                    f"{len(self.sites.present)} of {len(self.sites.roster)} sites can take part "
                    f"and {self.aggregator.threshold} must: see the lines above"
                )
            self._release_statistics()
            for number in range(1, set_(self.config.dream.rounds) + 1):
                self._greet()
                yield self._round(number)

    def _greet(self) -> None:
        """Begin the session at every site that is not in it; it trains before it answers."""
        options = self.config.options()
        hello = Hello(VERSION, self.session, options, self._identities)  # type: ignore[arg-type]
        missing = [site for site in self.sites.roster if site not in self.sites.present]
        for site, answer in self.sites.ask(dict.fromkeys(missing, hello)).items():
            if reason := self._unfit(site, decode_present(answer.data)):
                self._tell(f"site {site} cannot take part: {reason}")
                self.sites.unfit.add(site)
            else:
                self.sites.present.add(site)

    def _unfit(self, site: int, found: Present) -> str:
        spec = self._spec
        expected = (spec.channels, spec.height, spec.width, spec.classes)
        if found.client != site:
            return f"it says that it is site {found.client}"
        if found.spec != expected:
            return f"its data have the shape {found.spec}, not {expected}"
        if found.scaling != (self._scaling.mean, self._scaling.std):
            return "its pixels are scaled otherwise"
        if self._identities and found.identity != self._identities[site]:
            return "its signing key is not the one in the roster"
        return ""

    def _release_statistics(self) -> None:
        """Let sites release class means under DP; then they begin with them, and train."""
        from codream_secure.privacy.plan import PrivacyPlan  # noqa: PLC0415 - opacus is slow

        examples = self._share * len(self.sites.roster)
        plan = PrivacyPlan.of(self.config, examples, self._spec)
        if plan is None or plan.statistics is None:
            return
        try:
            answer = self.aggregator.sum(plan.statistics.request())
        except StepAborted:
            self.sites.ask(dict.fromkeys(self.sites.roster, Images(b"", 0)))
            return
        totals = answer.totals["statistics"]
        per_class = examples / self._spec.classes
        images = ClassImages.decode(totals, answer.count, plan.statistics, per_class)
        self._group.images = images
        draw = generator(self.config.run.seed or 0, "class images", "server")
        learn_images(self.student, images, self._scale, draw)
        message = Images(totals.astype("<u4").tobytes(), answer.count)
        self.sites.ask(dict.fromkeys(self.sites.roster, message))

    def _round(self, number: int) -> Round:
        self.ledger.begin_round(number)
        self._group.begin_round(number)
        self.aggregator.labels.clear()
        dream = self.config.dream
        student = None
        if dream.adaptive != "none" and number >= dream.adaptive_start:
            student = self.student.frozen_copy()
        found = []
        for batch in range(set_(dream.dream_batches)):
            labelled = self._group.synthesise(number, batch, student, lambda: None)
            if labelled is not None:
                found.append(labelled)
        learn = Learn(number, tuple(self.aggregator.labels))
        learned = self.sites.ask(dict.fromkeys(self.sites.roster, learn))
        self._distil(number)
        pixels = hashlib.sha256(b"".join(one.pixels.tobytes() for one in found))
        return Round(
            number=number,
            dreams=tuple(found),
            digest=pixels.hexdigest(),
            server=self._accuracy(),
            learned=len(learned),
        )

    def _distil(self, number: int) -> None:
        settings = learning_settings(self.config, number, local_steps=0)
        shuffle = generator(self.config.run.seed or 0, "acquisition", number, "server")
        distil(self.student, self._group.buffer, settings, shuffle)

    @torch.no_grad()
    def _accuracy(self) -> float | None:
        if self._test is None:
            return None
        images, labels = self._test
        model = self.student.frozen_copy()
        found = model(self._scale.scale(torch.from_numpy(images))).argmax(dim=1).numpy()
        return float((found == labels).mean())

    def _build_student(self) -> PlainLearner:
        config = self.config
        name = config.model.models.split(",")[0].strip()
        device = torch.device("cpu")
        model = run_model(config, self._spec, name, "server", device=device)
        return PlainLearner(
            model, None, config.learning.learning_rate, bf16=config.run.precision == "bf16"
        )
