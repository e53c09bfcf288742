"""Models without convolutions."""

from torch import nn

from codream_secure.data.spec import InputSpec
from codream_secure.models.layers import Norm


def mlp(spec: InputSpec, width: int, norm: Norm) -> nn.Sequential:  # noqa: ARG001 - see below
    """One hidden layer of `width` units; it has no norm, whatever `norm` says.

    Its activation is tanh: bounded activations lose less to DP-SGD's clipping than ReLU
    (Papernot et al. 2021), and a smooth one gives dreams a gradient everywhere.
    """
    hidden = nn.Linear(_pixels(spec), width)
    return nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), nn.Linear(width, spec.classes))


def linear(spec: InputSpec) -> nn.Sequential:
    """Multinomial logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(_pixels(spec), spec.classes))


def _pixels(spec: InputSpec) -> int:
    return spec.channels * spec.height * spec.width
