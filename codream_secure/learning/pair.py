"""A private model and the client's copy of a common one learn from each other on own pictures.

The form is that of FML (Shen et al., Federated mutual learning, 2020) and FedKD (Wu et al., Nature
Communications 2022). Three things differ. Both have the run's local loss, which may be balanced.
Their optimizers live for the whole run, so that a schedule can follow it. The private model also
follows the common one on cut and mixed pictures (CutMix, Yun et al., ICCV 2019).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codream_secure.data.augment import cut_mixed
from codream_secure.learning.batches import BatchStream
from codream_secure.learning.compute import Work
from codream_secure.learning.learner import distillation_loss


def divergence(target: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(target || logits) of two models' softmax at temperature T, a scalar.

    Args:
        target: logits that take no gradient, float, shape (B, classes).
        logits: of the model that learns, float, shape (B, classes).
        temperature: T > 0.
    """
    wanted = (target.detach() / temperature).softmax(dim=1)
    return distillation_loss(logits, wanted, temperature)


@dataclass(slots=True)
class Pair:
    """One client's private model and its copy of the messenger.

    Attributes:
        private, messenger: trained in place.
        optimizers: of ``private`` and of ``messenger``.
        batches: the client's own pictures, with the run's augmentation and local loss.
        work: counts what both compute.
        draw: draws cuts and mixtures; a generator on the CPU.
        weight: of what the models learn from each other, beside the local loss.
        temperature: at which they do.
        mix: whether the private model follows the messenger on cut and mixed pictures too.
    """

    private: nn.Module
    messenger: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    batches: BatchStream
    work: Work
    draw: torch.Generator
    weight: float = 1.0
    temperature: float = 2.0
    mix: bool = True

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of both optimizers."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step(self) -> None:
        """Take one step of both models on one minibatch of local pictures."""
        x, y = self.batches.next()
        self.private.train()
        self.messenger.train()
        own, common = self.private(x), self.messenger(x)
        self.work.trained += 2 * len(x)
        of_private = self.batches.loss(own, y) + self._taught(common, own)
        of_common = self.batches.loss(common, y) + self._taught(own, common)
        if self.mix:
            of_private = of_private + self._mixture(x)
        for optimizer, loss in zip(self.optimizers, (of_private, of_common), strict=True):
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _taught(self, teacher: Tensor, pupil: Tensor) -> Tensor:
        return self.weight * divergence(teacher, pupil, self.temperature)

    def _mixture(self, x: Tensor) -> Tensor:
        """Return the private model's distance to the messenger on cut and mixed pictures."""
        mixed = cut_mixed(x, self.draw)
        # In eval mode: the messenger's BatchNorm statistics are those of whole pictures.
        self.messenger.eval()
        with torch.no_grad():
            target = self.messenger(mixed)
        self.messenger.train()
        self.work.trained += len(x)
        self.work.inferred += len(x)
        return self._taught(target, self.private(mixed))
