"""Names of the architectures. This module does not import torch, so that `--help` is fast."""

from typing import Final

from codream_secure.errors import UserError

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


def check_name(name: str) -> None:
    """Refuse a name that is neither an architecture's nor `module:function`.

    Raises:
        UserError: there is no such model.
    """
    if name not in MODEL_NAMES and ":" not in name:
        raise UserError(
            f"unknown model {name!r}: use {', '.join(MODEL_NAMES)} or my_module:my_function"
        )
