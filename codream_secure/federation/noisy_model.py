"""The server's side of the common model under differential privacy.

Two kinds of noisy masked sums touch data: class means once, and clipped gradients of the common
model (distributed DP-SGD, as the baseline `dpsgd-secure`). All else is post-processing: the common
model starts from images that are drawn around the class means, labels such images and noise, and
clients of any architecture learn from those.
"""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from codream_secure.aggregation.aggregator import Aggregator
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.model_updates import FULL, model_digest, packed, sent_to
from codream_secure.aggregation.requests import VERSION, Asked, GradientRequest
from codream_secure.errors import StepAborted
from codream_secure.federation.members import Federation, Member
from codream_secure.federation.rounds import Progress
from codream_secure.federation.server import Server
from codream_secure.models.tensors import load, tensors_of
from codream_secure.privacy.class_means import ClassMeanImages, ClassMeanTerms
from codream_secure.privacy.noisy_descent import NoisyDescent, gradient_grid
from codream_secure.privacy.noisy_sum import NoisySum, noisy_terms
from codream_secure.runtime.parallel import in_parallel
from codream_secure.runtime.stopwatch import Stopwatch
from codream_secure.storage.checkpoint import NoisyState


class NoisyModel:
    """Asks all clients for noisy sums, and moves the common model along them.

    Args:
        everybody: the clients.
        server: its student becomes the common model; its dreams start from the class means.
        aggregator: sums the clients' vectors.
        ledger: counts what is sent to the clients.
        twins: whether each client's twin trains beside it.

    Guarantee:
        Every request is one sum of `SumPlan`, charged before it is made. Nothing else is asked of
        a client. Test: tests/codream_secure/federation/test_noisy_model.py.
    """

    def __init__(
        self,
        everybody: Federation,
        server: Server,
        aggregator: Aggregator,
        ledger: ByteLedger,
        *,
        twins: bool,
    ) -> None:
        if everybody.sum_plan is None or everybody.plan is None:
            raise ValueError("no privacy was asked for")
        self._everybody, self._server, self._aggregator = everybody, server, aggregator
        self._ledger, self._twins = ledger, twins
        self._plan, self._schedule = everybody.sum_plan, everybody.plan
        self._config = everybody.config
        privacy = self._config.privacy
        model = everybody.private_copy(server.student.model)
        examples = everybody.share * len(everybody.roster)
        self._descent = NoisyDescent(
            model, gradient_grid(model, privacy.dp_clip), privacy.dp_steps, examples
        )
        self._descent.set_rate(privacy.dp_lr, self._plan.noise_multiplier, everybody.spec)
        self._sent = 0

    # -- before the first round ----------------------------------------------------------------

    def begin(self, progress: Progress) -> None:
        """Release class means, and let the common model learn from images drawn around them."""
        if self._plan.parts[0].released.length != self._gradients:
            progress.start("class means of all clients", 1)
            if (terms := self._plan.next_terms()) is not None:
                self._release_means(terms)
            progress.advance()
        self._server.teach_class_means(self._server.student, "server")
        load(self._descent.model, tensors_of(self._server.student.model))
        self._deliver()

    @property
    def _gradients(self) -> int:
        return self._plan.parts[-1].released.length

    def _release_means(self, terms: NoisySum) -> None:
        asked = ClassMeanTerms.of(self._everybody.spec, terms)
        if (found := self._sum(asked.request(), "statistics")) is None:
            return
        totals, count = found
        images = ClassMeanImages.decode(totals, count, asked, self._everybody.per_class)
        self._server.start_dreams_from(images)

    # -- rounds --------------------------------------------------------------------------------

    def run(
        self, number: int, progress: Progress, stopwatch: Stopwatch, _spent: float | None
    ) -> None:
        """Take the round's share of the sums of gradients; the student is then their result."""
        steps = self._schedule.even_steps(number)
        progress.start(f"round {number}: noisy sums of gradients", steps)
        with stopwatch.measure("local_training"):
            for _ in range(steps):
                self._step(number)
                progress.advance()
        load(self._server.student.model, tensors_of(self._descent.result()))
        # Everybody can make the dreams and their labels from this model and the public seed.
        self._send(self._descent.result())
        if self._twins:
            with stopwatch.measure("independent"):
                self._train_twins(steps)

    def done(self, number: int, spent: float | None) -> float:
        """Return the share of the run, 0 to 1, that is done when clients learn from dreams."""
        return (number - 1) / self._config.dream.rounds if spent is None else spent

    def _step(self, number: int) -> None:
        if (terms := self._plan.next_terms()) is None:
            return
        descent, index = self._descent, self._plan.charged
        request = GradientRequest(
            VERSION, number, index, model_digest(tensors_of(descent.model)), noisy_terms(terms)
        )
        for member in self._everybody.members.values():
            member.client.learner.work.trained += self._everybody.share
        if (found := self._sum(request, "gradient")) is None:
            return
        totals, count = found
        descent.step(terms.decode(totals, count), count / len(self._everybody.roster))
        taken = self._plan.parts[0].sums if len(self._plan.parts) > 1 else 0
        descent.average(index - taken)
        self._deliver()

    def _sum(self, request: Asked, section: str) -> tuple[NDArray[np.uint32], int] | None:
        """Return a noisy sum and how many clients are in it; None: it was aborted."""
        try:
            answer = self._aggregator.sum(request)
        except StepAborted:
            return None
        self._plan.released(answer.count)
        for client in self._aggregator.verified:
            noisy = self._everybody.members[client].client.noisy
            if noisy is not None:
                noisy.sums.verified(answer.count)
        return answer.totals[section], answer.count

    def _deliver(self) -> None:
        """Send the model that the next sum is for to all clients."""
        message = self._send(self._descent.model)
        for member in self._everybody.members.values():
            if member.client.noisy is not None:
                member.client.noisy.receive(message)

    def _send(self, model: nn.Module) -> bytes:
        self._sent += 1
        sent = packed(self._sent, FULL, 0, tensors_of(model))
        return sent_to(self._everybody.members, sent, self._ledger)

    def _train_twins(self, steps: int) -> None:
        """Let every twin train alone: as many private steps, or as many as its client took."""
        at_home = self._config.privacy.keep_models_home

        def train(member: Member) -> None:
            if at_home:
                member.train_twin()
                return
            for _ in range(steps):
                member.twin.local_step()

        list(in_parallel(train, self._everybody.members.values()))

    # -- checkpoints ---------------------------------------------------------------------------

    def state(self) -> NoisyState:
        """Return what a checkpoint stores besides the student."""
        images = self._server.images
        return NoisyState(
            made=self._plan.state(),
            sent=self._sent,
            descent=self._descent.state(),
            means=None if images is None else images.means,
        )

    def restore(self, state: NoisyState, charged: int) -> None:
        """Restore the state that `state` returned.

        Args:
            state: of the same run.
            charged: sums on record, those after the state was taken included.

        Raises:
            ValueError, RuntimeError, KeyError: the state belongs to another run.
        """
        self._plan.restore_sums(state.made, charged)
        self._descent.restore(state.descent)
        if state.means is not None:
            self._server.start_dreams_from(ClassMeanImages(state.means))
        taken = max((m.twin.local_steps for m in self._everybody.members.values()), default=0)
        if not self._config.privacy.keep_models_home:
            self._schedule.restore(min(taken, self._schedule.total))
        self._deliver()  # counted: a restarted server sends it again
        self._sent = state.sent
