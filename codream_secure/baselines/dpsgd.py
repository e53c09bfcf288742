"""Distributed DP-SGD: masked sums of clipped gradients that exist only with noise.

No server is trusted. It is the strongest competitor where all clients train one architecture.
Each step sums the clipped gradients of all examples (Abadi et al., CCS 2016, full batch); each
client adds its share of integer noise, and masks hide everything but the total (Kairouz, Liu,
Steinke, ICML 2021).
"""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from codream_secure.baselines.base import Baseline, Parties
from codream_secure.config.resolved import PrivateRun
from codream_secure.errors import StepAborted
from codream_secure.models.tensors import load, tensors_of
from codream_secure.privacy.integer_gradients import gradient_sum
from codream_secure.privacy.noisy_descent import NoisyDescent, gradient_grid, released_gradients
from codream_secure.privacy.sum_plan import Part, SumPlan


class DistributedDpSgd(Baseline):
    """One model that the server moves along noisy sums of gradients.

    At the end everybody holds the mean of the last models, all of which every client received.

    Guarantee:
        At most ``dp_steps`` sums over clients are released, each with the noise of `SumPlan`;
        one example changes a sum by at most the clip, up to floating point (`gradient_sum`).
        Everything else is post-processing.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        config, everybody = parties.federation.config, parties.federation
        if everybody.plan is None or not isinstance(config, PrivateRun):
            raise ValueError("no privacy was asked for")
        model, privacy = parties.new_model(), config.privacy
        self._local = {c: everybody.private_copy(model) for c in parties.clients}
        self._grid = gradient_grid(model, privacy.dp_clip)
        kind = released_gradients(self._grid, everybody.share)
        self.plan = SumPlan(config, [Part(released=kind, sums=privacy.dp_steps, share=1.0)])
        self._sides = {c: self.plan.side(c) for c in parties.clients}
        self._schedule = everybody.plan
        self.descent = NoisyDescent(
            model, self._grid, privacy.dp_steps, everybody.share * len(parties.clients)
        )
        self.descent.set_rate(privacy.dp_lr, self.plan.noise_multiplier, everybody.spec)

    def client_models(self) -> dict[int, nn.Module]:
        """Return the one model, once per client."""
        return dict.fromkeys(self._local, self.server_model())

    def server_model(self) -> nn.Module:
        """Return the mean of the last models once there is one, else the model itself."""
        return self.descent.result()

    @property
    def budget(self) -> SumPlan:
        """The budget of the noisy sums; no client takes private steps of its own."""
        return self.plan

    def round(self, number: int) -> None:
        """Take the round's share of the steps; each is one sum and one new model for all."""
        for _ in range(self._schedule.even_steps(number)):
            self._step(number)

    def _step(self, number: int) -> None:
        if (terms := self.plan.next_terms()) is None:
            return
        exchange, descent = self.parties.exchange, self.descent
        state, index = tensors_of(descent.model), self.plan.charged

        def compute(client: int) -> NDArray[np.int64]:
            data, party = self.parties.federation.examples(client), self.parties.clients[client]
            party.work.trained += len(data.y)
            load(self._local[client], state)
            return gradient_sum(self._local[client], data.x, data.y, self._grid)

        try:
            answer = exchange.noisy_sum((number, index), state, terms, self._sides, compute)
        except StepAborted:
            return
        self.plan.released(answer.count)
        total = terms.decode(answer.totals["gradient"], answer.count)
        descent.step(total, answer.count / len(self._sides))
        load(descent.model, exchange.deliver(number, tensors_of(descent.model)))
        descent.average(index)
