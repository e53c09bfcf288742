"""Loading a dataset: by name, or from a file of arrays.

The scaling of a dataset is a table of public constants, never a statistic of what was loaded:
a mean computed from private examples would be a release that no privacy accounting covers.
"""

import contextlib
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from codream_secure.data.npz import read_npz
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.errors import UserError

DATASET_NAMES: Final = ("digits", "mnist", "fashion-mnist", "cifar10", "svhn")

# The split of `digits` is this constant and the rule of `_digits_test_indices`, and nothing else.
DIGITS_TEST_PER_CLASS: Final = 40

_CLASSES: Final = 10
_SCALING: Final = {
    "mnist": Scaling((0.1307,), (0.3081,)),
    "fashion-mnist": Scaling((0.2860,), (0.3530,)),
    "cifar10": Scaling((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
# torchvision's class, and where below the data folder it looks for the files.
_TORCHVISION: Final = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "svhn": ("SVHN", "."),
}
# What torchvision raises for no network, for a broken download and for files it cannot parse.
_TORCHVISION_ERRORS: Final = (OSError, RuntimeError, ValueError, AssertionError, LookupError)

_Split = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Training and test images with their labels.

    Attributes:
        name: Name of the dataset; of a file, its name without the folders.
        x_train: float32, N x C x H x W, pixels in [0, 1] (not scaled).
        y_train: int64, N, in [0, classes).
        x_test: float32, M x C x H x W, pixels in [0, 1] (not scaled).
        y_test: int64, M, in [0, classes).
        spec: Shape of an image, and the number of classes.
        scaling: Public constants a model's input is scaled by.
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    spec: InputSpec
    scaling: Scaling


def load_dataset(name: str, data_dir: Path) -> Dataset:
    """Load a dataset by name, or from an `.npz` file.

    Args:
        name: One of `DATASET_NAMES`, or the path of a file that ends in `.npz`, with the arrays
            `x_train`, `y_train`, `x_test`, `y_test`. Images are N x H x W or N x H x W x C, C in
            1..4, either uint8 or floats in [0, 1]; labels are integers from 0.
        data_dir: Where the files of the downloaded datasets are or will be put. Not used for
            `digits` (it comes with scikit-learn) nor for a file.

    Returns:
        The dataset. The train-test split is the dataset's own and independent of any seed.

    Raises:
        UserError: The name is unknown, a download failed, or a file is not as described above.
    """
    if name.endswith(".npz"):
        arrays = read_npz(Path(name))
        classes = 1 + int(max(arrays.y_train.max(), arrays.y_test.max()))
        return _dataset(
            Path(name).name,
            (arrays.x_train, arrays.y_train),
            (arrays.x_test, arrays.y_test),
            classes,
        )
    if name == "digits":
        return _load_digits()
    if name in _TORCHVISION:
        return _load_torchvision(name, data_dir)
    msg = f"unknown dataset {name!r}: use {', '.join(DATASET_NAMES)} or a path ending in .npz"
    raise UserError(msg)


def _dataset(name: str, train: _Split, test: _Split, classes: int) -> Dataset:
    _, channels, height, width = train[0].shape
    scaling = _SCALING.get(name, Scaling((0.5,) * channels, (0.5,) * channels))
    return Dataset(name, *train, *test, InputSpec(channels, height, width, classes), scaling)


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow, and only needed here

    source = load_digits()
    images = (source.images[:, None] / 16).astype(np.float32)
    labels = source.target.astype(np.int64)
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[_digits_test_indices(labels)] = True
    train, test = ((images[part], labels[part]) for part in (~in_test, in_test))
    return _dataset("digits", train, test, _CLASSES)


def _digits_test_indices(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the test images, ascending: evenly spaced examples of every class."""
    # No random generator: its stream may change with a version of numpy, and the split may not.
    chosen = []
    for label in range(_CLASSES):
        members = np.flatnonzero(labels == label)
        steps = np.arange(DIGITS_TEST_PER_CLASS) * len(members) // DIGITS_TEST_PER_CLASS
        chosen.append(members[steps])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _load_torchvision(name: str, data_dir: Path) -> Dataset:
    from torchvision import datasets  # noqa: PLC0415 - imports torch

    class_name, folder = _TORCHVISION[name]
    source = getattr(datasets, class_name)
    splits = []
    try:
        for split in ("train", "test"):
            chosen = {"split": split} if name == "svhn" else {"train": split == "train"}
            # torchvision prints its progress, and standard output is for results.
            with contextlib.redirect_stdout(sys.stderr):
                splits.append(_from_torchvision(source(root=data_dir, download=True, **chosen)))
    except _TORCHVISION_ERRORS as error:
        reason = textwrap.shorten(str(error), 120, placeholder=" ...") or type(error).__name__
        msg = (
            f"cannot download or read {name}: put its files in {data_dir / folder}"
            f" or use --dataset PATH.npz ({reason})"
        )
        raise UserError(msg) from error
    return _dataset(name, splits[0], splits[1], _CLASSES)


def _from_torchvision(source: Any) -> _Split:  # noqa: ANN401 - torchvision is untyped
    """Images and labels of any of torchvision's four classes, which hold them in three ways."""
    if hasattr(source, "labels"):  # SVHN: arrays, channels first already
        images, labels = source.data, source.labels
    elif isinstance(source.data, np.ndarray):  # CIFAR-10: an array, channels last; a list
        images, labels = source.data.transpose(0, 3, 1, 2), source.targets
    else:  # MNIST and Fashion-MNIST: tensors, no channels
        images, labels = source.data.numpy()[:, None], source.targets.numpy()
    pixels = np.ascontiguousarray(images).astype(np.float32) / np.float32(255)
    return pixels, np.asarray(labels, dtype=np.int64)
