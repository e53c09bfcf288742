"""A client's side of the messenger, a small common model that clients of any architecture average.

A client's own model never leaves it. The sum of the changes of the messengers does, under masks,
and everybody adds its mean to the common model, so that all have the same one.
"""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from codream_secure.aggregation.model_updates import (
    model_digest,
    received,
    scaled_update,
)
from codream_secure.aggregation.requests import ModelRequest
from codream_secure.config.resolved import Resolved
from codream_secure.errors import RequestRefused
from codream_secure.learning.learner import PlainLearner, build_optimizer
from codream_secure.learning.pair import Pair
from codream_secure.models.tensors import add, difference, fitting, load, tensors_of
from codream_secure.runtime.seeds import generator
from codream_secure.storage.checkpoint import (
    MessengerState,
    optimizer_state,
    restore_optimizer,
)
from protocols.quantization import CLIP_MAX, CLIP_MIN


class OwnMessenger:
    """A client's copy of the messenger, and which requests for its update the client answers.

    Args:
        config: resolved settings.
        learner: the client's private model, which learns beside the copy.
        model: the common model, as its public seed gives it; changed in place.
        client: id; it selects the random stream of cuts and mixtures.
    """

    def __init__(
        self, config: Resolved, learner: PlainLearner, model: nn.Module, client: int
    ) -> None:
        if learner.data is None:
            raise ValueError("this learner has no local data")
        learning = config.learning
        self._learner, self._rate = learner, learning.learning_rate
        self._terms = config.messenger
        self._most = config.dream.rounds * config.messenger.messenger_sums
        self._common = tensors_of(model)
        self._answered = 0
        self._pair = Pair(
            learner.model,
            model,
            (learner.optimizer, build_optimizer(model, learning)),
            learner.data,
            learner.work,
            generator(config.run.seed or 0, "mixture", client),
            mix=config.messenger.messenger_mix,
        )

    def check(self, request: ModelRequest) -> None:
        """Raise RequestRefused for a request that the run's settings do not lead to.

        Nothing here depends on private data: all of it follows from settings and from what the
        server has sent.
        """
        if not self._answered < request.round <= self._most:
            raise RequestRefused(
                f"sum {request.round} of the messenger; {self._answered} are done of {self._most}"
            )
        if request.bits != self._terms.messenger_bits or request.weight_cap:
            raise RequestRefused("bits or weights of the messenger are not the run's")
        if request.sizes != tuple(value.numel() for value in self._common.values()):
            raise RequestRefused("the request is for another architecture than the messenger's")
        if not all(CLIP_MIN <= scale <= CLIP_MAX for scale in request.scales):
            raise RequestRefused("a scale of the messenger's update is out of range")
        if request.model != model_digest(self._common):
            raise RequestRefused("the request is for another model than the one that was sent")
        self._answered = request.round

    def update(self, request: ModelRequest) -> dict[str, NDArray[np.float64]]:
        """Train both models on own pictures; return the change of the messenger, by section."""
        pair = self._pair
        load(pair.messenger, self._common)
        pair.set_rate(self._learner.rate * self._rate)
        for _ in range(self._terms.messenger_steps):
            pair.step()
            self._learner.local_steps += 1
        change = difference(tensors_of(pair.messenger), self._common)
        return {"update": scaled_update(change, request)}

    def receive(self, message: bytes) -> None:
        """Add the mean change that the server sends to the common model.

        Raises:
            RequestRefused: it is malformed, or not for such a model.
        """
        self._common = add(self._common, received(message, self._common))

    def state(self) -> MessengerState:
        """Return what a checkpoint stores."""
        return MessengerState(
            common=self._common,
            optimizer=optimizer_state(self._pair.optimizers[1]),
            draw=self._pair.draw.get_state(),
            answered=self._answered,
        )

    def restore(self, state: MessengerState) -> None:
        """Restore the state that `state` returned.

        Raises:
            ValueError: the state belongs to another model.
        """
        self._common = fitting(state.common, self._common)
        restore_optimizer(self._pair.optimizers[1], state.optimizer)
        self._pair.draw.set_state(state.draw)
        self._answered = state.answered
