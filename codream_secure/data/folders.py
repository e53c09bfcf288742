"""Read a folder of images, with one subfolder for each class, named after the class.

    photos/train/cat/1.png             photos/cat/1.png
    photos/train/dog/2.png      or     photos/dog/2.png
    photos/test/cat/3.png
    photos/test/dog/4.png

On the left the user made the split. On the right one fifth of each class becomes the test part:
the files whose names have the smallest SHA-256 digests. So the split depends on the names alone.
Classes are numbered in the order of their names. Names that begin with a dot are ignored, and so
are files whose ending is not in `ENDINGS`, and folders that this program wrote: pictures of a run
are no data of the next one. Images are turned as their EXIF orientation says.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from codream_secure.data.npz import FEWER
from codream_secure.errors import UserError
from codream_secure.runtime import memory
from codream_secure.storage.folder_lock import LOCK

ENDINGS: Final = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"))
TEST_PART: Final = 5  # one image in five of each class, rounded down

# A run, a comparison and the table of sizes each have one of these from their first moment on.
_OWN_FILES: Final = ("metrics.jsonl", "compare.json", "sizes.json")
# A folder without images of its own is passed over if it has one of these names or a lock, since
# runs go there, or one is about to.
_OWN_NAMES: Final = frozenset(("runs", "comparisons"))
_CLASSES_MIN: Final = 2
_SPLIT_MIN: Final = 2
_COLOUR_AXES: Final = 3
_GREY: Final = frozenset(("1", "L", "LA"))
_COLOUR: Final = frozenset(("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"))

_Split = tuple[NDArray[np.uint8], NDArray[np.int64]]
_Files = list[tuple[Path, int]]


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder:
    """The images of a folder.

    Attributes:
        train: Images, uint8 N x C x H x W, and labels, int64 N.
        test: The same for the test part.
        classes: Names of the classes, by label.
    """

    train: _Split
    test: _Split
    classes: tuple[str, ...]


def read_folder(root: Path, size: int | None) -> ImageFolder:
    """Read all images of a folder.

    Args:
        root: The folder, as described above.
        size: Height and width to which every image is resized (bilinear). None: images keep
            their size, and all must have the same.

    Returns:
        The images, with one channel if all are grey, else with three. Transparency is dropped.

    Raises:
        UserError: There are fewer than two classes, a class is empty, the two parts do not fit
            together, or an image cannot be read or has another size than the first.
    """
    shape = None if size is None else (size, size)
    train, test, classes = _listed(root)
    paths = [path for path, _ in train + test]
    first = read_image(paths[0], shape)
    # Each image by itself, and all of them in one array.
    memory.require(2 * len(paths) * first.size, f"{root}: reading its {len(paths)} images", FEWER)
    images = _same_channels([first, *(read_image(path, shape) for path in paths[1:])])
    _check_sizes(root, paths, images)
    pixels = np.stack(images).transpose(0, 3, 1, 2)
    labels = np.array([label for _, label in train + test], dtype=np.int64)
    cut = len(train)
    return ImageFolder((pixels[:cut], labels[:cut]), (pixels[cut:], labels[cut:]), classes)


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the classes in a folder, by label, without reading any image.

    Raises:
        UserError: As `read_folder`, unless only the images show it.
    """
    return _listed(root)[2]


def _listed(root: Path) -> tuple[_Files, _Files, tuple[str, ...]]:
    """Return the files with their labels, for training and test, and the names of the classes."""
    try:
        if not _folders(root / "train"):
            return _split(root)
        if not (root / "test").is_dir():
            raise _error(
                root,
                "it has train/ and no test/; add it, or name train/ to split that",
            )
        classes = _class_names(root / "train")
        unknown = [path.name for path in _folders(root / "test") if path.name not in classes]
        if unknown:
            raise _error(root, f"class {unknown[0]} is in test/ but not in train/")
        train, test = (
            [
                (path, label)
                for label, name in enumerate(classes)
                if (root / part / name).is_dir()
                for path in _images(root / part / name)
            ]
            for part in ("train", "test")
        )
        if not test:
            raise _error(root / "test", "it has no images; add some, in one folder for each class")
    except OSError as error:
        raise _error(root, f"cannot be read ({error.strerror})") from error
    return train, test, classes


def _split(root: Path) -> tuple[_Files, _Files, tuple[str, ...]]:
    """Take one fifth of each class for the test part, at least one image."""
    classes = _class_names(root)
    train: _Files = []
    test: _Files = []
    for label, name in enumerate(classes):
        images = _images(root / name)
        if len(images) < _SPLIT_MIN:
            raise _error(
                root / name,
                "it has one image, but training and test part need one each; add another",
            )
        names = {path: path.relative_to(root).as_posix().encode() for path in images}
        in_order = sorted(images, key=lambda path: hashlib.sha256(names[path]).digest())
        chosen = set(in_order[: max(1, len(images) // TEST_PART)])
        train += [(path, label) for path in images if path not in chosen]
        test += [(path, label) for path in images if path in chosen]
    return train, test, classes


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that may be classes: neither hidden nor this program's own."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))
    return sorted(path for path in found if not (_is_own(path) or _holds_only_own(path)))


def read_image(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Read one image: uint8, H x W x 1 if it is grey, else H x W x 3.

    Args:
        path: of the file.
        size: height and width to resize it to (bilinear); None: it keeps its own.

    Raises:
        UserError: it cannot be read, or has pixels of another type.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415 - only needed here

    try:
        with Image.open(path) as image:
            if image.mode not in _GREY | _COLOUR:
                raise _error(path, f"its pixels are of type {image.mode}; store 8-bit grey or RGB")
            turned = ImageOps.exif_transpose(image)
            plain = turned.convert("L" if image.mode in _GREY else "RGB")
            if size is not None:
                plain = plain.resize(size[::-1], Image.Resampling.BILINEAR)
            pixels = np.asarray(plain)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _error(path, "it is not a readable image; repair or remove it") from error
    return pixels if pixels.ndim == _COLOUR_AXES else pixels[..., None]


def images_below(folder: Path) -> list[Path]:
    """Return all images below a folder, in the order of their paths.

    Raises:
        UserError: it has none, or cannot be read.
    """
    try:
        return _images(folder)
    except OSError as error:
        raise _error(folder, f"cannot be read ({error.strerror})") from error


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _is_own(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _OWN_FILES)


def _holds_only_own(folder: Path) -> bool:
    """Tell whether a folder has no images but runs, or is about to have them."""
    images, own = _walk(folder)
    return not images and (own or folder.name in _OWN_NAMES or (folder / LOCK).is_file())


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in _folders(folder))
    if len(names) < _CLASSES_MIN:
        text = f"it needs a folder for every class and at least two classes, but has {len(names)}"
        raise _error(folder, text)
    return names


def _images(folder: Path) -> list[Path]:
    """Return all images below a folder, in the order of their paths."""
    images, _ = _walk(folder)
    if not images:
        raise _error(folder, f"it has no images; they end in {', '.join(sorted(ENDINGS))}")
    return images


def _walk(folder: Path) -> tuple[list[Path], bool]:
    """Return the images below a folder by their paths, and whether it met a folder of our own."""
    images: list[Path] = []
    own = False
    for place, folders, files in os.walk(folder, onerror=_raise):
        here = Path(place)
        visible = [name for name in folders if not _hidden(name)]
        folders[:] = [name for name in visible if not _is_own(here / name)]
        own |= len(folders) < len(visible)
        images += [
            here / name
            for name in files
            if not _hidden(name) and (here / name).suffix.lower() in ENDINGS
        ]
    return sorted(path for path in images if path.is_file()), own


def _raise(error: OSError) -> None:
    """Let `os.walk` pass over nothing that it cannot read: that would be other data."""
    raise error


def _same_channels(images: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    channels = max(image.shape[2] for image in images)
    return [
        image if image.shape[2] == channels else np.repeat(image, channels, axis=2)
        for image in images
    ]


def _check_sizes(root: Path, paths: list[Path], images: list[NDArray[np.uint8]]) -> None:
    height, width, _ = images[0].shape
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != (height, width):
            text = (
                f"{path.relative_to(root)} is {image.shape[1]} x {image.shape[0]} pixels and"
                f" {paths[0].relative_to(root)} {width} x {height}; give --image-size to resize all"
            )
            raise _error(root, text)


def _error(path: Path, text: str) -> UserError:
    return UserError(f"{path}: {text}")
