"""The terms of a dream's loss. Clients differentiate the first two; the server owns the priors.

Every term returns a scalar. What a client contributes is the gradient of
``B * (w_entropy * entropy + w_balance * class_balance + w_bn * feature distance)``: the factor B
(dreams in the batch) makes the size of one pixel's gradient independent of the batch size, so
that one public clip fits every batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.aggregation.requests import Adversary


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


def adversarial(teacher: Tensor, student: Tensor, kind: Adversary) -> Tensor:
    """Return R_adv, the mean over the batch of a negative divergence, in nats.

    Args:
        teacher: logits, float, shape (B, classes).
        student: logits, float, shape (B, classes).
        kind: "jsd", the Jensen-Shannon divergence, at most log 2 (CoDream, Eq. 3); "kl",
            KL(teacher || student) where both name the same class, unbounded (official code).
    """
    log_t, log_s = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    if kind == "kl":
        agree = (teacher.argmax(dim=1) == student.argmax(dim=1)).to(log_t.dtype)
        return -(agree * _divergence(log_t, log_s)).mean()
    log_m = torch.logaddexp(log_t, log_s) - torch.log(log_t.new_tensor(2.0))
    return -((_divergence(log_t, log_m) + _divergence(log_s, log_m)) / 2).mean()


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) of every row."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
