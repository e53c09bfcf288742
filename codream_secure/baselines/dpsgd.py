"""Distributed DP-SGD: masked sums of clipped gradients that exist only with noise.

No server is trusted. It is the strongest competitor where all clients train one architecture.
Each step sums the clipped gradients of all examples (Abadi et al., CCS 2016, full batch); each
client adds its share of integer noise, and masks hide everything but the total (Kairouz, Liu,
Steinke, ICML 2021).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from codream_secure.baselines.base import Baseline, Parties
from codream_secure.config.resolved import PrivateRun
from codream_secure.errors import StepAborted
from codream_secure.models.tensors import load, tensors_of
from codream_secure.privacy.accounting import EXAMPLES
from codream_secure.privacy.integer_gradients import GradientGrid, gradient_sum
from codream_secure.privacy.release_plan import Released, ReleasePlan

# The sum of a client with more examples than this many even shares may be cut off at a public
# bound, which costs no privacy.
_SHARES = 4
# lr = min(_RATE, _OVER_NOISE / noise) / clip, where `noise` is that of the mean gradient times
# sqrt(pixels): what a step adds to the input of a unit of the first layer. _MOMENTUM is that of
# SGD; _AVERAGED is the part of the last steps whose models are averaged. Public constants, chosen
# on validation folds of the digits' and of MNIST's training part.
_RATE, _OVER_NOISE = 8.0, 0.27
_MOMENTUM, _AVERAGED = 0.7, 0.25


class DistributedDpSgd(Baseline):
    """One model that the server moves along noisy sums of gradients.

    At the end everybody holds the mean of the last models, all of which every client received.
    The mean keeps what the steps have in common and averages out noise and overshooting.

    Guarantee:
        At most ``dp_steps`` sums over clients are released, each with the noise of `ReleasePlan`;
        one example changes a sum by at most the clip, up to floating point (`gradient_sum`).
        Everything else is post-processing.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        config, everybody = parties.federation.config, parties.federation
        if everybody.plan is None or not isinstance(config, PrivateRun):
            raise ValueError("no privacy was asked for")
        self.model = parties.new_model()
        self._local = {c: everybody.private_copy(self.model) for c in parties.clients}
        self._sizes = [p.numel() for p in self.model.parameters()]
        self._grid = GradientGrid(sum(self._sizes), config.privacy.dp_clip)
        self.plan = ReleasePlan(
            config,
            Released(
                name="summed gradients",
                unit="example",
                adjacency=EXAMPLES,
                length=self._grid.parameters,
                l2=self._grid.l2,
                clip=config.privacy.dp_clip,
                largest=_SHARES * everybody.share * self._grid.l2,
            ),
            config.privacy.dp_steps,
        )
        self._sides = {c: self.plan.share(c) for c in parties.clients}
        self._schedule = everybody.plan
        rate = config.privacy.dp_lr or self._rate(everybody.share * len(parties.clients))
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=rate * (1 - _MOMENTUM), momentum=_MOMENTUM
        )
        self._mean = AveragedModel(self.model)

    def client_models(self) -> dict[int, nn.Module]:
        """Return the one model, once per client."""
        return dict.fromkeys(self._local, self.server_model())

    def server_model(self) -> nn.Module:
        """Return the mean of the last models once there is one, else the model itself."""
        return self._mean.module if self._mean.n_averaged else self.model

    @property
    def budget(self) -> ReleasePlan:
        """The budget of the noisy sums; no client takes private steps of its own."""
        return self.plan

    def round(self, number: int) -> None:
        """Take the round's share of the steps; each is one sum and one new model for all."""
        for _ in range(self._schedule.even_steps(number)):
            if self.plan.reserve():
                self._step(number)

    def _step(self, number: int) -> None:
        exchange, state = self.parties.exchange, tensors_of(self.model)
        index = self.plan.charged

        def compute(client: int) -> NDArray[np.int64]:
            data, party = self.parties.federation.examples(client), self.parties.clients[client]
            party.work.trained += len(data.y)
            load(self._local[client], state)
            return gradient_sum(self._local[client], data.x, data.y, self._grid)

        try:
            answer = exchange.noisy_sum((number, index), state, self._sides, compute)
        except StepAborted:
            return
        self.plan.released(answer.count)
        total = self.plan.terms.decode(answer.totals["gradient"], answer.count)
        examples = answer.count * self.parties.federation.share
        mean = torch.from_numpy((total / (self._grid.scale * examples)).astype(np.float32))
        for p, part in zip(self.model.parameters(), torch.split(mean, self._sizes), strict=True):
            p.grad = part.reshape(p.shape).to(p.device)
        self._optimizer.step()
        load(self.model, exchange.deliver(number, tensors_of(self.model)))
        if index > (1 - _AVERAGED) * self.plan.total:
            self._mean.update_parameters(self.model)

    def _rate(self, examples: int) -> float:
        spec = self.parties.federation.spec
        pixels = spec.channels * spec.height * spec.width
        noise = self.plan.noise_multiplier / examples * math.sqrt(pixels)  # in units of the clip
        return min(_RATE, _OVER_NOISE / noise) / self._grid.clip
