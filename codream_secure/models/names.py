"""Names of the architectures. This module does not import torch, so that `--help` is fast."""

from typing import Final

MODEL_NAMES: Final = (
    "resnet8",
    "resnet18",
    "resnet34",
    "resnet50",
    "wrn16-1",
    "wrn16-2",
    "wrn40-1",
    "wrn40-2",
    "vgg8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "mobilenetv2",
    "lenet5",
    "mlp",
    "linear",
)
WITHOUT_NORM: Final = frozenset({"mlp", "linear"})
