"""What one client computes for a dream request: the gradient of its own loss at the dreams."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codream_secure.dreaming.feature_statistics import FeatureStatistics
from codream_secure.dreaming.losses import class_balance, entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Weights of the client-side terms; 0 switches a term off."""

    entropy: float
    feature_statistics: float
    class_balance: float


def client_loss(teacher: nn.Module, dreams: Tensor, weights: LossWeights) -> Tensor:
    """Return B times the weighted loss of CoDream Eq. 3 without its adversarial term.

    Args:
        teacher: frozen model in eval mode.
        dreams: scaled images, float, shape (B, C, H, W).
        weights: of the terms.
    """
    if weights.feature_statistics:
        with FeatureStatistics(teacher) as statistics:
            logits = teacher(dreams)
        feature_distance = statistics.penalty(logits)
    else:
        logits = teacher(dreams)
        feature_distance = logits.new_zeros(())
    loss = (
        weights.entropy * entropy(logits)
        + weights.class_balance * class_balance(logits)
        + weights.feature_statistics * feature_distance
    )
    return len(dreams) * loss


def dream_gradient(teacher: nn.Module, dreams: Tensor, weights: LossWeights) -> Tensor:
    """Return the gradient of `client_loss` with respect to the dreams.

    Args:
        teacher: frozen model in eval mode: no gradient reaches its parameters.
        dreams: scaled images, float, shape (B, C, H, W).
        weights: of the terms.

    Returns:
        float tensor, shape (B, C, H, W).
    """
    leaf = dreams.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(client_loss(teacher, leaf, weights), leaf)
    return gradient
