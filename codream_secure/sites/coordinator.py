"""A run over many machines, seen from its server: dreams, sums and student as in a simulation.

Read `Coordinator.round` first. The coordinator knows sites by number and messages as bytes.
Whoever carries messages (Flower's grid, or a test) passes one function that does it.
"""

import hashlib
import os
from dataclasses import astuple, dataclass, replace
from typing import Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dreaming.group import DreamGroup, weight_cap
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import UserError
from codream_secure.federation.rounds import RoundLoop
from codream_secure.federation.run_models import build_student
from codream_secure.federation.server import Server
from codream_secure.models.evaluate import accuracy
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.sites.aggregator import RemoteAggregator
from codream_secure.sites.history import beginning
from codream_secure.sites.journal import Journal
from codream_secure.sites.lessons import Lessons
from codream_secure.sites.peers import Carry, Sites, Tell
from codream_secure.sites.presence import Doorkeeper, fresh_nonce
from codream_secure.sites.record import Record
from codream_secure.sites.run_terms import (
    aggregation_settings,
    run_label_plan,
    unfit_for_machines,
)
from codream_secure.sites.server_state import FORMAT, RoundState, RunRecord, ServerState
from codream_secure.sites.wire import (
    VERSION,
    End,
    Hello,
    Images,
    Learn,
    Listed,
    Present,
    decode,
    decode_present,
    encode,
)

SESSION_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the server reports of a round; all of it is public.

    Attributes:
        number: from 1.
        dreams: labelled dream batches; empty for rounds before the last one.
        digest: SHA-256 of the pixels of all dreams, in hex.
        server: accuracy of the server's student on public test data; None: there is no such data.
        learned: how many sites have learned from the dreams.
        sites: mean accuracy of the sites' own models, and over how many sites; None: not asked,
            or too few sites answered.
    """

    number: int
    dreams: tuple[LabelledDreams, ...]
    digest: str
    server: float | None
    learned: int
    sites: tuple[float, int] | None = None

    @classmethod
    def restored(cls, state: RoundState, dreams: tuple[LabelledDreams, ...]) -> Self:
        """Return the round that `state` was called on; dreams are stored elsewhere."""
        return cls(dreams=dreams, **msgspec.structs.asdict(state))

    def state(self) -> RoundState:
        """Return what the journal stores of it."""
        return RoundState(**{name: getattr(self, name) for name in RoundState.__struct_fields__})


def _evaluates(config: Resolved, *, asked: bool | None) -> bool:
    """Return whether sites are asked for accuracies; raise UserError if that would leak."""
    evaluates = not config.private if asked is None else asked
    if evaluates and config.private_clients:
        raise UserError("evaluate cannot be used with --dp-unit client: an accuracy has no noise")
    return evaluates


class Coordinator(RoundLoop[Round]):
    """One run over sites.

    Args:
        config: settings of the run; ``data.clients`` is the number of sites.
        spec: shape of an image and number of classes; public.
        scaling: mean and standard deviation of pixels by channel; public.
        share: examples of a site if they were dealt evenly; public.
        carry: sends messages to sites and returns their answers.
        identities: Ed25519 public keys in roster order, in the malicious model.
        test: public test images, float32, shape (N, C, H, W), and labels, int64, shape (N,);
            None: there is no such data.
        evaluates: whether to ask, once a round, for the sum of the accuracies of the sites' own
            models; None: only without DP.
        journal: stores what is needed to continue after a crash.
        tell: receives one line for everything that goes wrong.

    Attributes:
        server: asks for dreams, and trains its student.
        label_plan: the noisy sums of labels under client-level DP; None: there are none.
        door: checks who a site is.
        finished: the finished rounds, those of earlier processes included.
        record: of the session; every step is bound to it.

    Raises:
        UserError: the settings cannot be run over machines, or differ from those of the journal.
    """

    def __init__(
        self,
        config: Config,
        *,
        spec: InputSpec,
        scaling: Scaling,
        share: int,
        carry: Carry,
        identities: tuple[bytes, ...] = (),
        test: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
        evaluates: bool | None = None,
        journal: Journal | None = None,
        tell: Tell = lambda _: None,
    ) -> None:
        super().__init__()
        self.config = resolve(config)
        if reason := unfit_for_machines(self.config):
            raise UserError(reason)
        self._spec, self._scaling, self._share = spec, scaling, share
        self._identities, self._test, self._tell = identities, test, tell
        self._evaluates = _evaluates(self.config, asked=evaluates)
        self._journal = journal or Journal()
        # May refuse the budget, so it comes before the journal begins a run.
        plan = PrivacyPlan.of(self.config, share * self.config.data.clients, spec)
        self.label_plan = run_label_plan(self.config, spec)
        self._run = self._journal.begin(self._record())
        self.session = self._run.session
        self.door = Doorkeeper(self.session, identities)
        settings = aggregation_settings(self.config, evaluates=self._evaluates)
        self.sites = Sites(carry, settings.roster, tell, traffic=self._journal.traffic())
        self.ledger = ByteLedger(settings.roster)
        self.record = Record(beginning(self._hello()))
        self._lessons = Lessons(self.record, self.sites, self._journal.request)
        self.aggregator = RemoteAggregator(
            self.sites,
            settings,
            Meters(self.ledger),
            session=self.session,
            identities=identities,
            record=self.record,
            journal=self._journal,
        )
        self._scale = PixelScale(scaling, torch.device("cpu"))
        self.server = self._new_server(plan)
        self.finished: list[Round] = []
        if self._journal.state is not None:
            self._restore(self._journal.state)

    def _new_server(self, plan: PrivacyPlan | None) -> Server:
        config, spec, scale = self.config, self._spec, self._scale
        device, cap = torch.device("cpu"), weight_cap(config, self._share)
        group = DreamGroup(
            (), {}, self.aggregator, config, spec, scale, device, cap, self.label_plan
        )
        return Server(
            config,
            self.aggregator,
            [group],
            build_student(config, spec, device),
            plan=plan,
            per_class=self._share * config.data.clients / spec.classes,
        )

    def _record(self) -> RunRecord:
        spec, scaling = self._spec, self._scaling
        return RunRecord(
            session=os.urandom(SESSION_SIZE),
            options=self.config.options(),  # type: ignore[arg-type]
            identities=self._identities,
            spec=(spec.channels, spec.height, spec.width, spec.classes),
            scaling=(scaling.mean, scaling.std),
            share=self._share,
            evaluates=self._evaluates,
        )

    @property
    def finished_rounds(self) -> int:
        """Rounds that the journal has as finished."""
        return len(self.finished)

    @property
    def last_round(self) -> int:
        """The round after which the run is over."""
        return self.config.dream.rounds

    def prepare(self) -> None:
        """Find enough sites, and release class means before the first round.

        Raises:
            UserError: fewer sites than the threshold can take part.
        """
        self._greet()
        if len(self.sites.present) < self.aggregator.threshold:
            raise UserError(
                f"{len(self.sites.present)} of {len(self.sites.roster)} sites can take part "
                f"and {self.aggregator.threshold} must: see the lines above"
            )
        if self._journal.state is None:
            self._release_class_means()
            self._save()

    def round(self, number: int) -> Round:
        """Make dreams with the sites that are there, let everybody learn, and save the state.

        A site that was absent at first may come later: it is told all that it missed.
        """
        self._greet()
        self._lessons.catch_up()
        finished = self._dream(number)
        if self.finished:  # the dreams of all rounds would fill the memory
            self.finished[-1] = replace(self.finished[-1], dreams=())
        self.finished.append(finished)
        self._save()
        if number == self.last_round:
            self.sites.ask(dict.fromkeys(sorted(self.sites.present), End()))
        return finished

    def _greet(self) -> None:
        """Begin the session at every site that is not in it; a site trains before it answers."""
        missing = [site for site in self.sites.roster if site not in self.sites.present]
        hello = self._hello()
        asked = {site: msgspec.structs.replace(hello, nonce=fresh_nonce()) for site in missing}
        for site, answer in self.sites.ask(asked).items():
            self._take_part(site, asked[site].nonce, answer.data)

    def _hello(self) -> Hello:
        run = self._run
        return Hello(VERSION, run.session, run.options, run.spec, run.identities)

    def _take_part(self, site: int, nonce: bytes, data: bytes) -> None:
        """Admit a site to the session, or say why it cannot take part."""
        try:
            found = decode_present(data)
        except msgspec.DecodeError as error:
            proven = self.door.admits(site, nonce, b"")
            self.sites.admit(site, f"it sent what cannot be used: {error}", proven=proven)
            return
        proven = self.door.admits(site, nonce, found.proof)
        if self.sites.admit(site, self._unfit(site, found), proven=proven):
            self.record.joined(site, found.received)

    def _unfit(self, site: int, found: Present) -> str:
        """Return why a site's answer does not fit the run; empty if it does."""
        expected = astuple(self._spec)
        if found.client != site:
            return f"it says that it is site {found.client}"
        if found.spec != expected:
            return f"its data have the shape {found.spec}, not {expected}"
        if found.scaling != (self._scaling.mean, self._scaling.std):
            return "its pixels are scaled otherwise"
        return ""

    def _release_class_means(self) -> None:
        """Let sites release class means under DP; then they start from them, and train."""
        if self.server.class_mean_terms is None:
            return
        answer = self.server.release_class_means()
        if answer is None:  # sites train all the same, without class means
            self._lessons.tell(Images(b"", 0))
        else:
            totals = answer.totals["statistics"].astype("<u4").tobytes()
            self._lessons.tell(Images(totals, answer.count))

    def _dream(self, number: int) -> Round:
        self.aggregator.labels.clear()
        found = self.server.dream(number, lambda: None)
        learned = self._lessons.tell(Learn(number, tuple(self.aggregator.labels)))
        self.server.distil(number)
        pixels = hashlib.sha256(b"".join(one.pixels.tobytes() for one in found))
        return Round(
            number=number,
            dreams=tuple(found),
            digest=pixels.hexdigest(),
            server=self._accuracy(),
            learned=learned,
            sites=self.aggregator.evaluate(number) if self._evaluates else None,
        )

    def _save(self) -> None:
        """Store the state between two rounds."""
        last = self.finished[-1].dreams if self.finished else ()
        student, (group,) = self.server.state()
        self._journal.save(
            ServerState(
                format=FORMAT,
                rounds=[one.state() for one in self.finished],
                # safetensors refuses tensors that share memory, and the buffer has these targets.
                dreams=[(torch.from_numpy(d.pixels.copy()), d.targets.clone()) for d in last],
                student=student,
                group=group,
                next_step=self.aggregator.next_step,
                sums=self.aggregator.begun,
                record=[
                    item if isinstance(item, Listed) else encode(item) for item in self.record.items
                ],
                ledger=self.ledger.state(),
                traffic=self.sites.traffic,
            )
        )

    def _restore(self, state: ServerState) -> None:
        """Restore the state that `_save` stored.

        Raises:
            UserError: the state does not fit the settings.
        """
        try:
            self.ledger.restore(state.ledger)
            self.server.restore(state.student, [state.group])
        except (ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"resume: the state does not fit this run: {error}") from None
        self.aggregator.begun = state.sums
        if self.label_plan is not None:  # nothing else is summed; those of this round are replayed
            self.label_plan.restore(state.sums)
        for kept in state.record:
            message = kept if isinstance(kept, Listed) else decode(kept)
            if isinstance(message, Listed | Images | Learn):
                self.record.add(message)
            if isinstance(message, Images) and message.count:
                totals = np.frombuffer(message.totals, "<u4").astype(np.uint32)
                self.server.decode_class_means(totals, message.count)
        dreams = tuple(LabelledDreams(pixels.numpy(), targets) for pixels, targets in state.dreams)
        for one in state.rounds:
            self.finished.append(Round.restored(one, dreams if one is state.rounds[-1] else ()))

    def _accuracy(self) -> float | None:
        if self._test is None:
            return None
        images, labels = self._test
        if not len(labels):
            return None
        return accuracy(self.server.student.frozen_copy(), self._scale.examples(images, labels))
