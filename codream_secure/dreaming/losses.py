"""The terms of a dream's loss. Clients differentiate the first two; the server owns the priors.

Every term returns a scalar. What a client contributes is the gradient of
``B * (w_entropy * entropy + w_balance * class_balance + w_bn * feature distance)``: the factor B
(dreams in the batch) makes the size of one pixel's gradient independent of the batch size, so
that one public clip fits every batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions, in nats (CoDream Eq. 3, first term).

    Args:
        logits: float, shape (B, classes).
    """
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def class_balance(logits: Tensor) -> Tensor:
    """Negative entropy of the batch-mean prediction, in nats.

    Entropy alone is content when all dreams show one class; this term is lowest when the batch
    covers all classes evenly. (DAFL, Chen et al., ICCV 2019, "information entropy loss".)

    Args:
        logits: float, shape (B, classes).
    """
    mean = logits.softmax(dim=1).mean(dim=0)
    return (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def total_variation(dreams: Tensor) -> Tensor:
    """Sum of squared differences of neighbouring pixels, divided by the number of values.

    Args:
        dreams: float, shape (B, C, H, W).
    """
    rows = (dreams[:, :, 1:, :] - dreams[:, :, :-1, :]).square().sum()
    columns = (dreams[:, :, :, 1:] - dreams[:, :, :, :-1]).square().sum()
    return (rows + columns) / dreams.numel()


def class_mean_distance(dreams: Tensor, classes: Tensor, means: Tensor) -> Tensor:
    """Mean squared distance between what the dreams of a class are in the mean and what they shall.

    Args:
        dreams: float, shape (B, C, H, W).
        classes: of every dream, int64, shape (B,); a class without dreams does not count.
        means: of every class, shape (classes, C, H, W).
    """
    counts = torch.bincount(classes, minlength=len(means))
    sums = torch.zeros_like(means).index_add(0, classes, dreams)
    found = sums / counts.clamp_min(1).reshape(-1, 1, 1, 1)
    return (found - means)[counts > 0].square().mean()


def squared_norm(dreams: Tensor) -> Tensor:
    """Mean squared value of the dreams (the L2 prior).

    Args:
        dreams: float, shape (B, C, H, W).
    """
    return dreams.square().mean()
