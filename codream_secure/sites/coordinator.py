"""The server of a run over many machines: the same dreams, sums and student as in a simulation.

Read `Coordinator.run` first. It knows sites by number, and messages as bytes: whoever carries them
(Flower's grid, or a test) gives it one function.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dreaming.group import DreamGroup
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import UserError
from codream_secure.federation.members import build_student
from codream_secure.federation.server import Server
from codream_secure.models.evaluate import accuracy
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.runtime.parallel import one_core_each
from codream_secure.sites.aggregator import RemoteAggregator
from codream_secure.sites.history import after, beginning
from codream_secure.sites.journal import FORMAT, Journal, RoundState, RunRecord, ServerState
from codream_secure.sites.peers import Carry, Sites, Tell
from codream_secure.sites.run_terms import aggregation_settings, unfit_for_machines
from codream_secure.sites.wire import (
    VERSION,
    End,
    Hello,
    Images,
    Learn,
    Present,
    decode,
    decode_present,
    encode,
)

SESSION_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the server tells of a round; all of it is public.

    Attributes:
        number: from 1.
        dreams: labelled batches.
        digest: SHA-256 of their pixels, in hex.
        server: accuracy of the server's student on public test data, if there are some.
        learned: how many sites learned from them.
        sites: mean accuracy of the sites' own models, and of how many; None: nobody told.
    """

    number: int
    dreams: tuple[LabelledDreams, ...]
    digest: str
    server: float | None
    learned: int
    sites: tuple[float, int] | None = None


class Coordinator:
    """One run over sites.

    Args:
        config: of the run; ``data.clients`` sites.
        spec: shape of an image and number of classes, public.
        scaling: public.
        share: examples of a site if they were dealt evenly, public.
        carry: moves bytes.
        identities: public keys in roster order, in the malicious model.
        test: public test data, scaled images and labels; None: there are none.
        evaluates: whether to ask, once a round, for the sum of the accuracies of the sites' own
            models; None: unless there is DP.
        journal: remembers what it takes to go on after a crash, and has it after one.
        tell: told what went wrong.

    Attributes:
        finished: rounds, those of an earlier process included; dreams are kept of the last alone.

    Raises:
        UserError: settings that cannot be run over machines, or not those of the journal.
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
        self.config = resolve(config)
        if reason := unfit_for_machines(self.config):
            raise UserError(reason)
        self._spec, self._scaling, self._share = spec, scaling, share
        self._identities, self._test, self._tell = identities, test, tell
        self._evaluates = not self.config.private if evaluates is None else evaluates
        self._journal = journal or Journal()
        examples = share * self.config.data.clients
        plan = PrivacyPlan.of(self.config, examples, spec)
        self._run = self._journal.begin(self._record())
        self.session = self._run.session
        settings = aggregation_settings(self.config, evaluates=self._evaluates)
        self.sites = Sites(carry, settings.roster, tell, traffic=self._journal.traffic())
        self.ledger = ByteLedger(settings.roster)
        self.aggregator = RemoteAggregator(
            self.sites,
            settings,
            Meters(self.ledger),
            session=self.session,
            identities=identities,
            journal=self._journal,
        )
        device = torch.device("cpu")
        self._scale = PixelScale(scaling, device)
        group = DreamGroup((), {}, self.aggregator, self.config, spec, self._scale, device, 0)
        self.server = Server(
            self.config,
            self.aggregator,
            [group],
            build_student(self.config, spec, device),
            plan=plan,
            per_class=examples / spec.classes,
        )
        self.finished: list[Round] = []
        self._told: list[Images | Learn] = []
        self._heard: dict[int, int] = {}
        self.aggregator.history = beginning(self._hello())
        if self._journal.state is not None:
            self._restore(self._journal.state)

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

    def run(self) -> Iterator[Round]:
        """Run round after round; sites that were not there at first may come later.

        Yields:
            The rounds that were not finished before.

        Raises:
            UserError: fewer sites than the threshold can take part.
        """
        if self.finished and self.finished[-1].number == self._rounds:
            return
        with one_core_each():
            self._greet()
            if len(self.sites.present) < self.aggregator.threshold:
                raise UserError(
                    f"{len(self.sites.present)} of {len(self.sites.roster)} sites can take part "
                    f"and {self.aggregator.threshold} must: see the lines above"
                )
            if self._journal.state is None:
                self._release_class_means()
                self._save()
            for number in range(len(self.finished) + 1, self._rounds + 1):
                self._greet()
                self._catch_up()
                self.finished.append(self._round(number))
                self._save()
                if number == self._rounds:
                    self.sites.ask(dict.fromkeys(sorted(self.sites.present), End()))
                yield self.finished[-1]

    @property
    def _rounds(self) -> int:
        return self.config.dream.rounds

    def _greet(self) -> None:
        """Begin the session at every site that is not in it; it trains before it answers."""
        missing = [site for site in self.sites.roster if site not in self.sites.present]
        for site, answer in self.sites.ask(dict.fromkeys(missing, self._hello())).items():
            if reason := self._take_part(site, answer.data):
                self._tell(f"site {site} cannot take part: {reason}")
                self.sites.unfit.add(site)

    def _hello(self) -> Hello:
        run = self._run
        return Hello(VERSION, run.session, run.options, run.spec, run.identities)

    def _take_part(self, site: int, data: bytes) -> str:
        """Let a site in; returns why not, if it cannot be."""
        try:
            found = decode_present(data)
        except msgspec.DecodeError as error:
            return f"it sent what cannot be used: {error}"
        if reason := self._unfit(site, found):
            return reason
        self._heard[site] = found.received
        self.sites.present.add(site)
        return ""

    def _tell_sites(self, message: Images | Learn) -> int:
        """Send what sites learn from, and bind all that is asked from now on to it.

        Returns:
            How many sites have heard all.
        """
        self._told.append(message)
        self.aggregator.history = after(self.aggregator.history, message)
        return self._catch_up()

    def _catch_up(self) -> int:
        """Send every site what it has not heard, in order; returns how many have heard all."""
        behind = [s for s in sorted(self.sites.present) if self._heard[s] < len(self._told)]
        while behind:
            answered = self.sites.ask({site: self._told[self._heard[site]] for site in behind})
            for site in answered:
                self._heard[site] += 1
            behind = [s for s in behind if s in answered and self._heard[s] < len(self._told)]
        return sum(self._heard[site] >= len(self._told) for site in self.sites.present)

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

    def _release_class_means(self) -> None:
        """Let sites release class means under DP; then they start from them, and train.

        A crash cuts off the only attempt: a release that was asked for is never asked again.
        """
        if self.server.class_mean_terms is None:
            return
        answer = self.server.release_class_means()
        if answer is None:  # sites train all the same, without class means
            self._tell_sites(Images(b"", 0))
        else:
            totals = answer.totals["statistics"].astype("<u4").tobytes()
            self._tell_sites(Images(totals, answer.count))

    def _round(self, number: int) -> Round:
        self.ledger.begin_round(number)
        self.aggregator.labels.clear()
        found = self.server.dream(number, lambda: None)
        learned = self._tell_sites(Learn(number, tuple(self.aggregator.labels)))
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
        """Write down the state between two rounds."""
        last = self.finished[-1].dreams if self.finished else ()
        student, (group,) = self.server.state()
        self._journal.save(
            ServerState(
                format=FORMAT,
                rounds=[_told(one) for one in self.finished],
                # The buffer holds the same targets; what is stored must not be shared.
                dreams=[(torch.from_numpy(d.pixels.copy()), d.targets.clone()) for d in last],
                student=student,
                group=group,
                next_step=self.aggregator.next_step,
                sums=self.aggregator.begun,
                told=[encode(message) for message in self._told],
                ledger=self.ledger.state(),
                traffic=self.sites.traffic,
            )
        )

    def _restore(self, state: ServerState) -> None:
        """Become what the server was after its last round.

        Raises:
            UserError: the state does not fit the settings.
        """
        try:
            self.ledger.restore(state.ledger)
            self.server.restore(state.student, [state.group])
        except (ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"resume: the state does not fit this run: {error}") from None
        self.aggregator.begun = state.sums
        for encoded in state.told:
            message = decode(encoded)
            if isinstance(message, Images | Learn):
                self._told.append(message)
                self.aggregator.history = after(self.aggregator.history, message)
            if isinstance(message, Images) and message.count:
                totals = np.frombuffer(message.totals, "<u4").astype(np.uint32)
                self.server.decode_class_means(totals, message.count)
        dreams = tuple(LabelledDreams(pixels.numpy(), targets) for pixels, targets in state.dreams)
        for one in state.rounds:
            kept = dreams if one is state.rounds[-1] else ()
            self.finished.append(
                Round(
                    number=one.number,
                    dreams=kept,
                    digest=one.digest,
                    server=one.server,
                    learned=one.learned,
                    sites=one.sites,
                )
            )

    def _accuracy(self) -> float | None:
        if self._test is None:
            return None
        images, labels = self._test
        if not len(labels):
            return None
        return accuracy(self.server.student.frozen_copy(), self._scale.examples(images, labels))


def _told(one: Round) -> RoundState:
    return RoundState(
        number=one.number,
        digest=one.digest,
        server=one.server,
        learned=one.learned,
        sites=one.sites,
    )
