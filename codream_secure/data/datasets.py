"""Loading a dataset: by name, from a file of arrays, or from a folder of images.

Images are scaled by public constants, which stand in a table here. A mean that was computed from
private examples would be a release that no privacy accounting covers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from codream_secure.data.downloads import CLASSES, download
from codream_secure.data.folders import read_folder
from codream_secure.data.names import DATASET_NAMES, unknown
from codream_secure.data.npz import Arrays, as_floats, read_npz
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.errors import UserError
from codream_secure.storage.looking import is_folder

# This constant and the rule of `_digits_test_indices` fix the split of `digits` completely.
DIGITS_TEST_PER_CLASS: Final = 40

_DIGITS: Final = 10
# All other data, including a user's own, are scaled to [-1, 1].
_SCALING: Final = {
    "mnist": Scaling((0.1307,), (0.3081,)),
    "fashion-mnist": Scaling((0.2860,), (0.3530,)),
    "emnist": Scaling((0.1751,), (0.3332,)),
    "cifar10": Scaling((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Scaling((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_Split = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Training and test images with their labels.

    Attributes:
        name: Name of the dataset; for a file, the name without its folders.
        x_train: float32, N x C x H x W, pixels in [0, 1] (not scaled).
        y_train: int64, N, in [0, classes).
        x_test: float32, M x C x H x W, pixels in [0, 1] (not scaled).
        y_test: int64, M, in [0, classes).
        spec: Shape of an image, and the number of classes.
        scaling: Public mean and deviation by which the input of a model is scaled.
        class_names: What the labels stand for, in their order; numbers where nothing is known.
        client_rows: Rows of the training part by client, int64, where the data came divided;
            empty where it is to be dealt.
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    spec: InputSpec
    scaling: Scaling
    class_names: tuple[str, ...]
    client_rows: tuple[NDArray[np.int64], ...] = ()


def load_dataset(name: str, data_dir: Path, image_size: int | None = None) -> Dataset:
    """Load a dataset by name, from an `.npz` file, or from a folder of images.

    Args:
        name: One of `DATASET_NAMES`, or the path of a file that ends in `.npz`, or of a folder.
            A file holds the arrays `x_train`, `y_train`, `x_test`, `y_test`. Images are
            N x H x W or N x H x W x C, C in 1..4, either uint8 or floats in [0, 1]; labels are
            integers from 0. `codream_secure.data.folders` describes the folder.
        data_dir: Folder of the downloaded files; missing ones are put there. It is not used for
            `digits` (which come with scikit-learn), for a file or for a folder.
        image_size: Height and width that the images of a folder are resized to.

    Returns:
        The dataset. The split into training and test part is the dataset's own; no seed changes it.

    Raises:
        UserError: The name is unknown, a download failed, or a file or folder does not have
            the form that is described above.
    """
    if name in DATASET_NAMES or name.endswith(".npz"):
        if image_size is not None:
            msg = f"--image-size is for folders of images; {name} has its own size, leave it out"
            raise UserError(msg)
        return _load_named(name, data_dir)
    if is_folder(Path(name)):
        folder = read_folder(Path(name), image_size)
        train, test = _floats(name, "training", folder.train), _floats(name, "test", folder.test)
        return make_dataset(Path(name).resolve().name, train, test, class_names=folder.classes)
    raise unknown(name)


def _load_named(name: str, data_dir: Path) -> Dataset:
    if name == "digits":
        return _load_digits()
    if name in CLASSES:
        parts = download(name, data_dir)
        train, test = _floats(name, "training", parts[0]), _floats(name, "test", parts[1])
        return make_dataset(name, train, test, class_names=_numbers(CLASSES[name]))
    return dataset_of(Path(name).name, read_npz(Path(name)))


def dataset_of(name: str, arrays: Arrays, class_names: Sequence[str] = ()) -> Dataset:
    """Return the dataset of four checked arrays.

    Args:
        name: of the dataset.
        arrays: the images and labels of both parts.
        class_names: one for each class; empty: as many numbers as the largest label needs.

    Raises:
        UserError: there are more classes in the labels than names.
    """
    classes = 1 + int(max(arrays.y_train.max(), arrays.y_test.max()))
    train, test = (arrays.x_train, arrays.y_train), (arrays.x_test, arrays.y_test)
    return make_dataset(name, train, test, class_names=class_names or _numbers(classes))


def _numbers(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))


def make_dataset(name: str, train: _Split, test: _Split, *, class_names: Sequence[str]) -> Dataset:
    """Return a dataset of images, float32 N x C x H x W in [0, 1], and labels, int64 N.

    Raises:
        UserError: images and labels do not agree.
    """
    _check_parts(name, train, test, len(class_names))
    _, channels, height, width = train[0].shape
    scaling = _SCALING.get(name, Scaling((0.5,) * channels, (0.5,) * channels))
    spec = InputSpec(channels, height, width, len(class_names))
    return Dataset(name, *train, *test, spec, scaling, tuple(class_names))


def _check_parts(name: str, train: _Split, test: _Split, classes: int) -> None:
    """Check that images and labels of both parts agree, whatever format they came from.

    Raises:
        UserError: they do not.
    """
    for part, (images, labels) in (("training", train), ("test", test)):
        if len(images) != len(labels):
            text = f"its {part} part has {len(images)} images and {len(labels)} labels"
        elif not len(images):
            text = f"its {part} part is empty"
        elif labels.min() < 0 or labels.max() >= classes:
            found = f"from {labels.min()} to {labels.max()}"
            text = f"its {part} labels go {found}, not 0 to {classes - 1}"
        else:
            continue
        raise UserError(f"{name}: {text}; replace its files")
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = f"{train[0].shape[1:]} and {test[0].shape[1:]}"
        raise UserError(
            f"{name}: training and test images differ in shape (C, H, W): {shapes}; "
            "replace its files"
        )


def _floats(name: str, part: str, found: tuple[NDArray[Any], NDArray[np.int64]]) -> _Split:
    images, labels = found
    return as_floats(name, f"its {part} part", images), labels


@cache
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow, and only needed here

    return load_digits(return_X_y=True)  # type: ignore[no-any-return]


def _load_digits() -> Dataset:
    pixels, target = _digits()
    images = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = target.astype(np.int64)
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[_digits_test_indices(labels)] = True
    train, test = ((images[part], labels[part]) for part in (~in_test, in_test))
    return make_dataset("digits", train, test, class_names=_numbers(_DIGITS))


def _digits_test_indices(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ascending positions of the test images: evenly spaced in every class."""
    # No random generator: numpy may change its stream with a version, and the split must stay.
    chosen = []
    for label in range(_DIGITS):
        members = np.flatnonzero(labels == label)
        steps = np.arange(DIGITS_TEST_PER_CLASS) * len(members) // DIGITS_TEST_PER_CLASS
        chosen.append(members[steps])
    return np.sort(np.concatenate(chosen)).astype(np.int64)
