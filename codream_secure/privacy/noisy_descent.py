"""Steps of one model along noisy sums of all clients' gradients (distributed DP-SGD)."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from codream_secure.data.spec import InputSpec
from codream_secure.models.tensors import fitting, load, tensors_of
from codream_secure.privacy.accounting import EXAMPLES
from codream_secure.privacy.integer_gradients import GradientGrid
from codream_secure.privacy.release_plan import Released
from codream_secure.storage.checkpoint import DescentState, optimizer_state, restore_optimizer

NAME = "summed gradients"
# The sum of a client with more examples than this many even shares may be cut off at a public
# bound, which costs no privacy.
_SHARES = 4
# lr = min(_RATE, _OVER_NOISE / noise) / clip, where `noise` is that of the mean gradient times
# sqrt(pixels): what a step adds to the input of a unit of the first layer. _MOMENTUM is that of
# SGD; _AVERAGED is the part of the last steps whose models are averaged. Public constants, chosen
# on validation folds of the digits' and of MNIST's training part.
_RATE, _OVER_NOISE = 8.0, 0.27
_MOMENTUM, _AVERAGED = 0.7, 0.25


def gradient_grid(model: nn.Module, clip: float) -> GradientGrid:
    """Return the grid of a model's clipped gradients."""
    return GradientGrid(sum(p.numel() for p in model.parameters()), clip)


def released_gradients(grid: GradientGrid, share: int) -> Released:
    """Return what a sum of gradients releases, for a plan.

    Args:
        grid: of the gradients.
        share: examples of a client if they were dealt evenly; public.
    """
    return Released(
        name=NAME,
        unit="example",
        adjacency=EXAMPLES,
        length=grid.parameters,
        l2=grid.l2,
        clip=grid.clip,
        largest=_SHARES * share * grid.l2,
    )


class NoisyDescent:
    """A model that moves along noisy sums of gradients; the mean of its last states is the result.

    The mean keeps what the steps have in common and averages out noise and overshooting.

    Args:
        model: moved in place.
        grid: of its clipped gradients.
        steps: in the whole run.
        examples: of all clients together, if they were dealt evenly; public.

    Guarantee:
        All that it does is post-processing of the noisy sums.

    Attributes:
        model: as the argument.
    """

    def __init__(self, model: nn.Module, grid: GradientGrid, steps: int, examples: int) -> None:
        self.model, self._grid, self._steps, self._examples = model, grid, steps, examples
        self._sizes = [p.numel() for p in model.parameters()]
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=_MOMENTUM)
        self._mean = AveragedModel(model)

    def set_rate(self, rate: float | None, noise_multiplier: float, spec: InputSpec) -> None:
        """Set the step size.

        Args:
            rate: the step size; None: by the noise.
            noise_multiplier: standard deviation of a sum's noise, in units of the clip.
            spec: shape of an image.
        """
        if rate is None:
            pixels = spec.channels * spec.height * spec.width
            noise = noise_multiplier / self._examples * math.sqrt(pixels)  # in units of the clip
            rate = min(_RATE, _OVER_NOISE / noise) / self._grid.clip
        for group in self._optimizer.param_groups:
            group["lr"] = rate * (1 - _MOMENTUM)

    def step(self, total: NDArray[np.float64], share: float) -> None:
        """Move the model along a sum.

        Args:
            total: the decoded sum, in integers of the grid, float64, shape (parameters,).
            share: part of all clients that are in the sum, above 0 to 1.
        """
        examples = share * self._examples
        mean = torch.from_numpy((total / (self._grid.scale * examples)).astype(np.float32))
        for p, part in zip(self.model.parameters(), torch.split(mean, self._sizes), strict=True):
            p.grad = part.reshape(p.shape).to(p.device)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def average(self, index: int) -> None:
        """Take the model after step ``index``, from 1, into the mean if it is one of the last."""
        if index > (1 - _AVERAGED) * self._steps:
            self._mean.update_parameters(self.model)

    def result(self) -> nn.Module:
        """Return the mean of the last models once there is one, else the model itself."""
        return self._mean.module if self._mean.n_averaged else self.model

    def state(self) -> DescentState:
        """Return what a checkpoint stores."""
        return DescentState(
            model=tensors_of(self.model),
            mean=tensors_of(self._mean.module),
            averaged=int(self._mean.n_averaged),
            optimizer=optimizer_state(self._optimizer),
        )

    def restore(self, state: DescentState) -> None:
        """Restore the state that `state` returned.

        Raises:
            ValueError, RuntimeError, KeyError: the state belongs to another model.
        """
        for module, found in ((self.model, state.model), (self._mean.module, state.mean)):
            load(module, fitting(found, tensors_of(module)))
        self._mean.n_averaged.fill_(state.averaged)
        restore_optimizer(self._optimizer, state.optimizer)
