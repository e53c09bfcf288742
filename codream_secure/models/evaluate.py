"""Evaluate a model: logits, hits and accuracy."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codream_secure.data.examples import Examples


@torch.no_grad()
def hits(model: nn.Module, examples: Examples, batch: int = 256) -> NDArray[np.bool_]:
    """Return for each example whether its label has the largest logit: bool, shape (N,).

    The model is evaluated in eval mode; afterwards it is in the mode that it was in before.
    """
    was_training = model.training
    model.eval()
    pairs = zip(torch.split(examples.x, batch), torch.split(examples.y, batch), strict=True)
    found = torch.cat([model(x).argmax(dim=1) == y for x, y in pairs])
    model.train(was_training)
    return np.asarray(found.cpu().numpy())


def accuracy(model: nn.Module, examples: Examples) -> float:
    """Return the fraction of examples whose label has the largest logit."""
    return float(hits(model, examples).mean())


def personal_accuracy(
    found: NDArray[np.bool_], labels: NDArray[np.int64], counts: NDArray[np.int64]
) -> float:
    """Return the accuracy on one client's own mix of classes, in [0, 1].

    It is the mean of the test accuracies on the classes, weighted by the client's number of
    training examples. Classes without test examples are left out.

    Args:
        found: hits on the test part, bool, shape (N,); see `hits`.
        labels: labels of the test part, int64, shape (N,).
        counts: the client's training examples of each class, int64, shape (classes,).
    """
    tested = np.bincount(labels, minlength=len(counts))
    right = np.bincount(labels, weights=found, minlength=len(counts))
    weights = np.where(tested > 0, counts, 0)
    return float((weights * right / np.maximum(tested, 1)).sum() / max(weights.sum(), 1))


def logits_of(model: nn.Module, x: Tensor, *, bf16: bool) -> Tensor:
    """Return a model's logits; the forward pass may run in bfloat16.

    Args:
        model: in training or eval mode.
        x: scaled images, float32, shape (B, C, H, W).
        bf16: whether to use `torch.autocast`. Weights, losses and all gradients stay float32.

    Returns:
        float32, shape (B, classes).
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        logits: Tensor = model(x)
    return logits.float() if bf16 else logits


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose parameters need no gradients."""
    return copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
