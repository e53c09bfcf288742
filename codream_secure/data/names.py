"""Names of the datasets. This module imports nothing, so that `--help` is fast."""

from typing import Final

DATASET_NAMES: Final = (
    "digits",
    "mnist",
    "fashion-mnist",
    "emnist",
    "svhn",
    "cifar10",
    "cifar100",
    "pathmnist",
)
