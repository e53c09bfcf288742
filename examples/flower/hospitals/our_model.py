"""A hospital's own architecture: `model="our_model:small_cnn"` in its --node-config."""

from torch import nn

from codream_secure.data.spec import InputSpec


def small_cnn(spec: InputSpec) -> nn.Module:
    """Return a network of two convolutions that takes images of any size."""
    return nn.Sequential(
        nn.Conv2d(spec.channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4, spec.classes),
    )
