"""The server of a run over many machines: the same dreams, sums and student as in a simulation.

Read `Coordinator.run` first. It knows sites by number, and messages as bytes: whoever carries them
(Flower's grid, or a test) gives it one function.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from codream_secure.acquisition import distil, learn_images
from codream_secure.aggregation import Aggregator, Call, FieldSum, Inputs, Meters
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
from codream_secure.flower.remote_sums import RemoteSums, SumTerms
from codream_secure.flower.sites import Carry, Sites, Tell
from codream_secure.flower.wire import VERSION, Hello, Images, Learn, Present, decode_present
from codream_secure.learner import PlainLearner
from codream_secure.parallel import one_core_each
from codream_secure.privacy.class_statistics import ClassImages
from codream_secure.resolve import resolve
from codream_secure.schedule import learning_settings
from codream_secure.seeds import generator
from protocols.driver import DropSchedule
from protocols.params import Phase


class RemoteAggregator(Aggregator):
    """The aggregator of a run over sites.

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
        terms = SumTerms(
            session=session,
            roster=settings.roster,
            threshold=settings.needed,
            threat_model=settings.threat_model,
            identities=identities,
            rejoin=settings.rejoin,
        )
        self._sites = sites
        self._sums = RemoteSums(sites, terms, self._message)
        self._call: Call | None = None
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
        self._call = call
        key_steps = max(1, self._settings.batch_steps(call.step))
        coming = self._settings.batch_steps(call.step + 1)
        result = self._sums.sum(call.task, call.broadcast, key_steps, next_steps=coming)
        return FieldSum(dict(result.totals), len(result.survivors), call.task.sections)

    def _message(self, phase: Phase, direction: Direction, site: int, size: int) -> None:
        call = self._call
        self._count(phase, direction, site, size, None if call is None else call.request)
        if call is not None and (phase, direction) == (Phase.MASKED_INPUT, "down"):
            self._meters.ledger.record("broadcast", "down", len(call.broadcast), client=site)


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
