"""FedTGP (Zhang et al., Trainable global prototypes, AAAI 2024)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.baselines.base import Parties
from codream_secure.baselines.class_rows import ClassRows, fit, single_rows, stacked
from codream_secure.baselines.fedproto import FedProto
from codream_secure.runtime.seeds import derive_seed, generator

# A square root has no gradient at zero.
_TINY = 1e-12


class Prototypes(nn.Module):
    """Trainable prototypes: a vector for each class, passed through two linear layers.

    Args:
        classes: number of prototypes.
        width: of a prototype, and of the layers.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(classes, width))
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self) -> Tensor:
        """Return the prototypes, float, shape (classes, width)."""
        found: Tensor = self.layers(self.start)
        return found


class FedTGP(FedProto):
    """FedProto whose server trains the prototypes, so that classes lie apart.

    Each client's mean of a class is pulled to the prototype of its class and pushed from those of
    the others, by cross-entropy over minus the distances with a margin on the right class's. The
    margin is the largest distance between two classes' means over clients, at most tau; HtFLlib
    takes the largest of each class's smallest distances. The server needs single
    clients' means, so they cannot be masked: it sees which classes each client has, and their mean
    features.
    """

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        seed, form = parties.exchange.seed, self.prototypes.rows
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "fedtgp"))
            self.trainable = Prototypes(*form.shape).to(form.device)
        self._order = generator(seed, "fedtgp")

    @property
    def weight(self) -> float:
        """Of the distance in the loss (lambda)."""
        return self.settings.tgp_weight

    def renewed(self, number: int) -> ClassRows | None:
        """Return the prototypes after training on each client's means; None if none came."""
        found = single_rows(self.parties.exchange, number, self.prototypes, self.trained)
        if not found:
            return None
        settings, rows = self.settings, stacked(found.values())
        space = margin(*rows, settings.tgp_margin)

        def loss(values: Tensor, classes: Tensor) -> Tensor:
            return contrast(values, classes, self.trainable(), space)

        passes, rate = settings.tgp_epochs, settings.server_rate
        fit(self.trainable, rows, loss, passes=passes, rate=rate, order=self._order)
        counts = torch.bincount(rows[1], minlength=len(self.prototypes.counts))
        return ClassRows(self.trainable().detach(), counts)


def contrast(values: Tensor, classes: Tensor, prototypes: Tensor, space: float) -> Tensor:
    """Return the contrastive loss of clients' means (Eq. 6), the mean over them.

    Args:
        values: means, float, shape (R, width).
        classes: of the means, int64, shape (R,).
        prototypes: float, shape (classes, width).
        space: margin added to the distance to the right class.
    """
    squares = (values[:, None] - prototypes).square().sum(dim=2)
    apart = (squares + _TINY).sqrt()
    return F.cross_entropy(-(apart + space * F.one_hot(classes, len(prototypes))), classes)


def margin(values: Tensor, classes: Tensor, most: float) -> float:
    """Return the largest distance between the means of two classes, at most ``most``.

    Args:
        values: clients' means, float, shape (R, width).
        classes: of the means, int64, shape (R,).
        most: tau.
    """
    centres = torch.stack([values[classes == c].mean(dim=0) for c in torch.unique(classes)])
    return min(float(torch.cdist(centres, centres).max()), most)
