"""Names of the datasets. This module imports no NumPy, so that `--help` is fast."""

from pathlib import Path
from typing import Final

from codream_secure.errors import UserError
from codream_secure.storage.looking import is_file, is_folder

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


def check_name(name: str) -> None:
    """Refuse what is neither a dataset's name nor the path of a file or folder that is there.

    Raises:
        UserError: there is no such dataset.
    """
    if name in DATASET_NAMES:
        return
    if name.endswith(".npz"):
        if not is_file(Path(name)):
            raise missing(name)
    elif not is_folder(Path(name)):
        raise unknown(name)


def missing(path: Path | str) -> UserError:
    """Return the error of a file that is not there."""
    return UserError(f"{path}: no such file; check the path given as dataset")


def unknown(name: str) -> UserError:
    """Return the error of a name that no dataset has."""
    return UserError(
        f"unknown dataset {name!r}: use {', '.join(DATASET_NAMES)}, a path ending in .npz or a "
        "folder of images"
    )
