"""R_adv: dreams on which the server's student disagrees with the teachers (adaptive teaching).

No model is sent for it. The student publishes its logits s at the dreams; a client differentiates
R_adv(t, s) once through its own teacher and once with respect to s. Both are linear in what is
summed, and the server finishes with the vector-Jacobian product of its student.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from codream_secure.messages import Adversary


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
