"""Download datasets with torchvision, and PathMNIST with medmnist.

Files that are in the data folder already are read without the network.
"""

import contextlib
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codream_secure.errors import UserError

_Split = tuple[NDArray[Any], NDArray[np.int64]]  # the pixels have the type of the file


class _Source(NamedTuple):
    """A class of torchvision, and the subfolder in which it looks for its files."""

    class_name: str
    folder: str
    classes: int


_TORCHVISION: Final = {
    "mnist": _Source("MNIST", "MNIST/raw", 10),
    "fashion-mnist": _Source("FashionMNIST", "FashionMNIST/raw", 10),
    "emnist": _Source("EMNIST", "EMNIST/raw", 47),
    "svhn": _Source("SVHN", ".", 10),
    "cifar10": _Source("CIFAR10", "cifar-10-batches-py", 10),
    "cifar100": _Source("CIFAR100", "cifar-100-python", 100),
}
_PATHMNIST: Final = "pathmnist"
_PATHMNIST_FILE: Final = "pathmnist.npz"
CLASSES: Final = {name: source.classes for name, source in _TORCHVISION.items()} | {_PATHMNIST: 9}

# torchvision and numpy raise these: no network, a broken download, files that do not parse.
_ERRORS: Final = (
    OSError,
    RuntimeError,
    ValueError,
    AssertionError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)


def download(name: str, data_dir: Path) -> tuple[_Split, _Split]:
    """Read the files of a dataset, and download those that are missing.

    Args:
        name: A key of `CLASSES`. `emnist` is its `balanced` split, with the images upright.
            PathMNIST's validation part is left out.
        data_dir: Folder of the files; missing ones are put there.

    Returns:
        Training and test part: images, N x C x H x W as the files have them (uint8; a file of
        PathMNIST that was put there may hold floats), and labels, int64 N.

    Raises:
        UserError: A download failed, files cannot be read, or medmnist is needed and missing.
    """
    folder = "." if name == _PATHMNIST else _TORCHVISION[name].folder
    with _one_line(name, data_dir / folder):
        if name == _PATHMNIST:
            return _pathmnist(data_dir)
        train, test = (_torchvision(name, split, data_dir) for split in ("train", "test"))
        return train, test


@contextlib.contextmanager
def _one_line(name: str, folder: Path) -> Iterator[None]:
    """Turn an error into one line, and send what libraries print to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except _ERRORS as error:
        reason = textwrap.shorten(str(error), 120, placeholder=" ...") or type(error).__name__
        msg = (
            f"cannot download or read {name}: put its files in {folder}"
            f" or use --dataset PATH.npz ({reason})"
        )
        raise UserError(msg) from error


def _torchvision(name: str, split: str, data_dir: Path) -> _Split:
    from torchvision import datasets  # noqa: PLC0415 - imports torch

    chosen: dict[str, object] = {"train": split == "train"}
    if name == "svhn":
        chosen = {"split": split}
    if name == "emnist":
        chosen["split"] = "balanced"
    source = getattr(datasets, _TORCHVISION[name].class_name)
    images, labels = _arrays(source(root=data_dir, download=True, **chosen))
    if name == "emnist":
        images = images.transpose(0, 1, 3, 2)  # EMNIST stores images transposed
    return images, np.asarray(labels, dtype=np.int64)


def _arrays(source: Any) -> tuple[NDArray[np.uint8], Any]:  # noqa: ANN401 - torchvision is untyped
    """Return images and labels; torchvision's classes store them in three different ways."""
    if hasattr(source, "labels"):  # SVHN: arrays, channels first already
        return source.data, source.labels
    if isinstance(source.data, np.ndarray):  # CIFAR: an array, channels last; a list
        return source.data.transpose(0, 3, 1, 2), source.targets
    return source.data.numpy()[:, None], source.targets.numpy()  # MNIST: tensors, no channels


def _pathmnist(data_dir: Path) -> tuple[_Split, _Split]:
    path = data_dir / _PATHMNIST_FILE
    if not path.exists():
        _download_pathmnist(data_dir)
    # Opened here, so that the file is closed even if numpy fails while it reads.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        train, test = (
            (
                archive[f"{split}_images"].transpose(0, 3, 1, 2),
                archive[f"{split}_labels"].reshape(-1).astype(np.int64),
            )
            for split in ("train", "test")
        )
    return train, test


def _download_pathmnist(data_dir: Path) -> None:
    try:
        import medmnist  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        msg = (
            "pathmnist is downloaded by medmnist, which is not installed: run"
            f" pip install 'codream-secure[medmnist]', or put {_PATHMNIST_FILE} in {data_dir}"
        )
        raise UserError(msg) from error
    data_dir.mkdir(parents=True, exist_ok=True)
    medmnist.PathMNIST(split="test", root=str(data_dir), download=True)
