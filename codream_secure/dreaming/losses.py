"""The terms of a dream's loss (CoDream, Eq. 3). Every function here returns a scalar.

Client k contributes the gradient, with respect to the dreams x, of

    B * (w_ent * H(x) + w_bal * L_bal(x) + w_bn * R_bn(x) + w_adv * R_adv(x)),

with H `entropy`, L_bal `class_balance`, R_adv `adversarial` and R_bn the distance that
`feature_statistics` computes. The factor B (dreams in the batch) makes the size of one pixel's
gradient independent of the batch size, so that one public clip fits every batch. The server adds
the gradients of the priors `total_variation`, `squared_norm` and `class_mean_distance` itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.aggregation.requests import Adversary


def entropy(logits: Tensor) -> Tensor:
    """Return H = -(1/B) sum_i sum_c p_ic log p_ic, p the softmax, in nats (CoDream, Eq. 3).

    Args:
        logits: float, shape (B, classes).
    """
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def class_balance(logits: Tensor) -> Tensor:
    """Return L_bal = sum_c m_c log m_c, with m the mean prediction over the batch, in nats.

    `entropy` alone has its minimum where all dreams show the same class; this term is lowest where
    the batch covers all classes evenly. Source: DAFL, Chen et al., ICCV 2019, "information entropy
    loss".

    Args:
        logits: float, shape (B, classes).
    """
    mean = logits.softmax(dim=1).mean(dim=0)
    return (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def total_variation(dreams: Tensor) -> Tensor:
    """Return the sum of squared differences of neighbouring pixels, by the number of values.

    Args:
        dreams: float, shape (B, C, H, W).
    """
    rows = (dreams[:, :, 1:, :] - dreams[:, :, :-1, :]).square().sum()
    columns = (dreams[:, :, :, 1:] - dreams[:, :, :, :-1]).square().sum()
    return (rows + columns) / dreams.numel()


def class_mean_distance(dreams: Tensor, classes: Tensor, means: Tensor) -> Tensor:
    """Return the mean squared distance of the dreams' class means from given class means.

    Args:
        dreams: float, shape (B, C, H, W).
        classes: of every dream, int64, shape (B,); a class without dreams does not count.
        means: the given mean of every class, shape (classes, C, H, W).
    """
    counts = torch.bincount(classes, minlength=len(means))
    sums = torch.zeros_like(means).index_add(0, classes, dreams)
    found = sums / counts.clamp_min(1).reshape(-1, 1, 1, 1)
    return (found - means)[counts > 0].square().mean()


def squared_norm(dreams: Tensor) -> Tensor:
    """Return the mean squared value of the dreams (the L2 prior).

    Args:
        dreams: float, shape (B, C, H, W).
    """
    return dreams.square().mean()


def adversarial(teacher: Tensor, student: Tensor, kind: Adversary) -> Tensor:
    """Return R_adv: minus the divergence of teacher and student, mean over the batch, in nats.

    Args:
        teacher: logits, float, shape (B, classes).
        student: logits, float, shape (B, classes).
        kind: "jsd", the Jensen-Shannon divergence, at most log 2 (CoDream, Eq. 3); "kl",
            KL(teacher || student) at dreams where both predict the same class, unbounded (as in
            CoDream's official code).
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
