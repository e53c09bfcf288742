"""The server of a run of CoDream: it asks clients for dreams, and its student learns from them.

`Simulation` and `sites.coordinator.Coordinator` share this class. They differ in who answers the
requests, in what they measure and in how they store their state.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from codream_secure.aggregation.aggregator import Aggregator, FieldSum
from codream_secure.config.resolved import Resolved
from codream_secure.dreaming.group import DreamGroup
from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import StepAborted
from codream_secure.learning.acquisition import distil, learn_images
from codream_secure.learning.learner import Learner
from codream_secure.learning.schedule import learning_settings
from codream_secure.privacy.class_means import ClassMeanImages, ClassMeanTerms
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.runtime.seeds import generator
from codream_secure.storage.checkpoint import GroupState, LearnerState


class Server:
    """The server's part of a run. It sees requests, sums and dreams, and nothing of one client.

    Args:
        config: resolved settings.
        aggregator: sums the answers of all clients.
        groups: clients that dream together: one group of all clients, or one group per client.
        student: learns from dreams and class means alone; it has no local data.
        plan: the private releases under example-level DP; None: there are none.
        per_class: examples of one class if all clients and classes were even; public.

    Attributes:
        images: class means that were released under DP; None: none were released.
    """

    def __init__(
        self,
        config: Resolved,
        aggregator: Aggregator,
        groups: Sequence[DreamGroup],
        student: Learner,
        *,
        plan: PrivacyPlan | None,
        per_class: float,
    ) -> None:
        self.groups, self.student = groups, student
        self.images: ClassMeanImages | None = None
        self._config, self._aggregator = config, aggregator
        self._plan, self._per_class = plan, per_class
        self._seed = config.run.seed or 0

    # -- class means under DP ----------------------------------------------------------------

    @property
    def class_mean_terms(self) -> ClassMeanTerms | None:
        """On which terms clients release class means; None: this run does without them."""
        return None if self._plan is None else self._plan.class_means

    def release_class_means(self) -> FieldSum | None:
        """Ask all clients once for class means under DP; dreams and student start from them.

        The release is charged before anybody is asked. It is not repeated if it is aborted,
        because the budget has room for one release.

        Returns:
            The noisy sum, from which clients compute the same class means; None: this run does
            without class means, or too few clients stayed.
        """
        plan = None if self._plan is None else self._plan.class_means_plan
        terms = self.class_mean_terms
        if plan is None or terms is None:
            return None
        plan.charge()
        try:
            answer = self._aggregator.sum(terms.request())
        except StepAborted:
            return None
        plan.released(answer.count)
        self.decode_class_means(answer.totals["statistics"], answer.count)
        self.teach_class_means(self.student, "server")
        return answer

    def decode_class_means(self, totals: NDArray[np.uint32], count: int) -> None:
        """Compute class means from their noisy sum and let dreams start from them.

        Args:
            totals: sums modulo 2^32, uint32, shape (terms.sum.length,).
            count: clients in the sum, at least 1.
        """
        if (terms := self.class_mean_terms) is not None:
            self.start_dreams_from(ClassMeanImages.decode(totals, count, terms, self._per_class))

    def start_dreams_from(self, images: ClassMeanImages) -> None:
        """Let all dreams start from public class means instead of noise."""
        self.images = images
        for group in self.groups:
            group.images = images

    def teach_class_means(self, learner: Learner, who: str | int) -> None:
        """Let a participant learn from the class means, if there are any.

        Args:
            learner: changed in place.
            who: selects the random stream: "server", or a client's id.
        """
        if self.images is not None:
            draw = generator(self._seed, "class images", who)
            learn_images(learner, self.images, self.groups[0].scale, draw)

    # -- one round ---------------------------------------------------------------------------

    def dream(self, number: int, advance: Callable[[], None]) -> list[LabelledDreams]:
        """Make the dreams of one round and store them in the groups' buffers.

        Args:
            number: of the round, from 1.
            advance: called after every aggregation.

        Returns:
            The labelled batches; a batch whose label aggregation was aborted is left out.
        """
        student, found = self.asked_student(number), []
        for group in self.groups:
            group.begin_round(number)
            found += group.synthesise(number, student, advance)
        return found

    def asked_student(self, number: int) -> nn.Module | None:
        """Return the student that judges the dreams of a round, frozen; None: no student does.

        Adaptive teaching (CoDream Eq. 4) asks it from ``adaptive_start`` on. Client-level DP asks
        it from round 2 on, because no client may be asked for gradients there; before round 2 it
        has learned nothing.
        """
        dream = self._config.dream
        if self._config.has_common_model:
            asks = True
        elif self._config.private_clients:
            asks = number > 1
        else:
            asks = dream.adaptive != "none" and number >= dream.adaptive_start
        return self.student.frozen_copy() if asks else None

    def distil(self, number: int, done: float | None = None) -> None:
        """Let the student learn from the buffer of the group of all clients.

        Args:
            number: of the round, from 1.
            done: share of the run that is done before this round; None: that of its rounds.
        """
        settings = learning_settings(self._config, number, 0, done)
        shuffle = generator(self._seed, "acquisition", number, "server")
        distil(self.student, self.groups[0].buffer, settings, shuffle)

    # -- state -------------------------------------------------------------------------------

    def state(self) -> tuple[LearnerState, list[GroupState]]:
        """Return what a checkpoint stores of the student and of the groups."""
        return self.student.state(), [group.state() for group in self.groups]

    def restore(self, student: LearnerState, groups: Sequence[GroupState]) -> None:
        """Restore what `state` returned; class means are restored by `start_dreams_from`.

        Raises:
            ValueError, RuntimeError, KeyError: the state belongs to other settings.
        """
        self.student.restore(student)
        for group, state in zip(self.groups, groups, strict=True):
            group.restore(state)
