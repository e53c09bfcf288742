"""Dreams that no client is asked for: smooth noise, and what the server's own student makes of it.

All of it is public, or computed from what was released; under client-level DP nothing else may go
into the dreams that labels are asked of.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.dreaming.losses import class_balance, entropy


def smooth_noise(shape: tuple[int, int, int, int], draw: torch.Generator) -> Tensor:
    """Return images of random blobs and edges: noise of all sizes, none finer than the last.

    Args:
        shape: (B, C, H, W).
        draw: a generator on the CPU.

    Returns:
        float32, mean about 0 and standard deviation 1 an image.
    """
    count, channels, height, width = shape
    total, side = torch.zeros(shape), 2
    while side <= max(height, width):
        coarse = torch.randn((count, channels, side, side), generator=draw)
        total += F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
        side *= 2
    spread = total.flatten(1).std(dim=1).clamp_min(1e-6).reshape(-1, 1, 1, 1)
    return total / spread


def student_gradient(
    student: nn.Module, dreams: Tensor, entropy_weight: float, balance_weight: float
) -> Tensor:
    """Return the gradient of the student's loss: what a client computes, of a public model.

    Args:
        student: frozen, in eval mode; learned from released labels alone.
        dreams: scaled images, shape (B, C, H, W).
        entropy_weight: of the predictions' entropy.
        balance_weight: of class balance.
    """
    leaf = dreams.detach().clone().requires_grad_()
    logits = student(leaf)
    loss = entropy_weight * entropy(logits) + balance_weight * class_balance(logits)
    (gradient,) = torch.autograd.grad(len(leaf) * loss, leaf)
    return gradient
