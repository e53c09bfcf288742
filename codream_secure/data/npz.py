"""Read a user's `.npz` file, and report in one line whatever is wrong with it."""

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from codream_secure.data.names import missing as missing_file
from codream_secure.errors import UserError
from codream_secure.runtime import memory

FEWER: Final = "use fewer or smaller images"
KEYS: Final = ("x_train", "y_train", "x_test", "y_test")
_IMAGES: Final = ("images", "x_test")
MAX_CHANNELS: Final = 4
MAX_CLASSES: Final = 65_536

_GREY_AXES: Final = 3
_COLOUR_AXES: Final = 4
# numpy and zipfile raise these for a file that is damaged or of another kind.
_FORMAT_ERRORS: Final = (
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """The four arrays of a file, checked and converted; shapes and types as in `Dataset`."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


def read_npz(path: Path) -> Arrays:
    """Read and check the four arrays of a file.

    Args:
        path: The file; `load_dataset` says what it must hold. Other arrays in it are ignored.

    Returns:
        Images as float32 N x C x H x W in [0, 1], labels as int64.

    Raises:
        UserError: The file is missing or is not a readable `.npz` file, or an array is missing
            or has the wrong shape, type or values.
    """
    return check_arrays(path, _read_arrays(path, lambda _: KEYS))


def read_images(path: Path) -> NDArray[Any]:
    """Return the images in a file, unchecked: its array `images`, else `x_test`.

    Raises:
        UserError: The file is missing or is not a readable `.npz` file, or has neither array.
    """
    keys = _read_arrays(path, lambda names: [k for k in _IMAGES if k in names][:1] or _IMAGES[:1])
    return next(iter(keys.values()))


def check_arrays(source: Path | str, raw: Mapping[str, NDArray[Any]]) -> Arrays:
    """Check the four arrays of a dataset, and convert them.

    Args:
        source: whence they come; it begins every error.
        raw: the arrays by the names in `KEYS`; `load_dataset` says what each must hold.

    Returns:
        Images as float32 N x C x H x W in [0, 1], labels as int64.

    Raises:
        UserError: An array has the wrong shape, type or values.
    """
    images = {key: check_images(source, key, raw[key]) for key in ("x_train", "x_test")}
    labels = {key: check_labels(source, key, raw[key]) for key in ("y_train", "y_test")}
    for split in ("train", "test"):
        x, y = images[f"x_{split}"], labels[f"y_{split}"]
        if len(x) != len(y):
            text = f"x_{split} has {len(x)} images and y_{split} {len(y)} labels; make them equal"
            raise _error(source, text)
    shapes = [images[key].shape[1:] for key in ("x_train", "x_test")]
    if shapes[0] != shapes[1]:
        text = f"train and test images differ in shape (C, H, W): {shapes[0]} and {shapes[1]}"
        raise _error(source, text)
    if max(int(array.max()) for array in labels.values()) == 0:
        raise _error(source, "all labels are 0; a dataset needs two classes or more")
    return Arrays(images["x_train"], labels["y_train"], images["x_test"], labels["y_test"])


def _error(source: Path | str, text: str) -> UserError:
    return UserError(f"{source}: {text}")


def _read_arrays(
    path: Path, wanted: Callable[[Collection[str]], Sequence[str]]
) -> dict[str, NDArray[Any]]:
    """Return arrays of a file; `wanted` chooses their names from those that are there."""
    try:
        # Opened here, so that the file is closed even if numpy fails while it reads.
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise _error(path, "not a complete .npz file; write it with numpy.savez")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                keys = wanted(archive.files)
                missing = [key for key in keys if key not in archive]
                if missing:
                    text = f"no array {', '.join(missing)}; it must hold {', '.join(keys)}"
                    raise _error(path, text)
                _check_size(path, archive.zip, keys)
                return {key: np.asarray(archive[key]) for key in keys}
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except MemoryError as error:
        raise _error(path, "its arrays do not fit in memory; use fewer images") from error
    except OSError as error:
        text = f"cannot be read ({error.strerror or 'damaged'}); check the file"
        raise _error(path, text) from error
    except _FORMAT_ERRORS as error:
        text = "damaged, or holds Python objects; write plain arrays with numpy.savez"
        raise _error(path, text) from error


def _check_size(path: Path, archive: zipfile.ZipFile | None, keys: Sequence[str]) -> None:
    """Refuse arrays that do not fit in memory, by the sizes that the file's directory gives."""
    if archive is not None:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        found = sum(sizes.get(f"{key}.npy", sizes.get(key, 0)) for key in keys)
        memory.require(found, f"{path}: reading it", FEWER)


def check_images(source: Path | str, key: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Check images, N x H x W (x C), and return them as float32 N x C x H x W in [0, 1].

    Raises:
        UserError: they have the wrong shape, type or values.
    """
    if array.ndim == _GREY_AXES:
        array = array[..., None]
    if array.ndim != _COLOUR_AXES or not 1 <= array.shape[-1] <= MAX_CHANNELS:
        text = (
            f"{key} has shape {array.shape}; images must be N x H x W, or N x H x W x C with the"
            f" 1 to {MAX_CHANNELS} channels last"
        )
        raise _error(source, text)
    if array.size == 0:
        raise _error(source, f"{key} is empty (shape {array.shape}); both splits need images")
    return as_floats(source, key, array.transpose(0, 3, 1, 2))


def as_floats(source: Path | str, key: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Return pixels, uint8 or floats in [0, 1], as contiguous float32 in [0, 1].

    Raises:
        UserError: they have another type, or are out of range.
    """
    pixels = np.ascontiguousarray(array)
    if pixels.dtype == np.uint8:
        what = f"{source}: {key} of shape {array.shape} as floats"
        memory.require(pixels.size * np.dtype(np.float32).itemsize, what, FEWER)
        floats = pixels.astype(np.float32)
        floats /= np.float32(255)
        return floats
    if pixels.dtype.kind != "f":
        text = f"{key} has type {array.dtype}; store pixels as uint8, or as floats in [0, 1]"
        raise _error(source, text)
    if not np.isfinite(pixels).all():
        raise _error(source, f"{key} has NaN or infinite pixels; remove or repair those images")
    if pixels.size and (pixels.min() < 0 or pixels.max() > 1):
        text = (
            f"{key} has pixels from {pixels.min():g} to {pixels.max():g}; bring them to [0, 1]"
            " (divide by the greatest possible pixel, undo any normalisation) or store uint8"
        )
        raise _error(source, text)
    return np.asarray(pixels, dtype=np.float32)


def check_labels(source: Path | str, key: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """Check labels, one integer from 0 for each image, and return them as int64.

    Raises:
        UserError: they have the wrong shape, type or values.
    """
    if array.ndim != 1 or array.dtype.kind not in "iu":
        text = (
            f"{key} has type {array.dtype} and shape {array.shape}; labels must be one integer"
            " per image, 0 for the first class"
        )
        raise _error(source, text)
    if array.size == 0:
        raise _error(source, f"{key} is empty; both splits need examples")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= MAX_CLASSES:
        text = f"{key} has labels from {low} to {high}; number the K classes 0 to K-1"
        raise _error(source, f"{text} (K at most {MAX_CLASSES})")
    return array.astype(np.int64)
