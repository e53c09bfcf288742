"""Data in memory: arrays and torch datasets, checked as files are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codream_secure.data.datasets import Dataset, dataset_of, load_dataset
from codream_secure.data.npz import MAX_CHANNELS, check_arrays
from codream_secure.errors import UserError

Channels = Literal["first", "last"]
# Two examples to train on, which BatchNorm needs, and as many to set aside for validation.
_LEAST_OF_A_CLIENT = 4
_COLOUR_AXES = 4
# The partition of data that came divided; no scheme deals it.
_PER_CLIENT = "per-client"


@runtime_checkable
class TorchDataset(Protocol):
    """A map-style dataset of `torch.utils.data`: pairs of an image and a label."""

    def __getitem__(self, index: int, /) -> Any:  # noqa: ANN401 - as torch has it
        """Return an image and its label."""

    def __len__(self) -> int:
        """Return how many there are."""


Part = TorchDataset | tuple[ArrayLike, ArrayLike]
"""Images and labels: a torch dataset, or a pair of arrays."""


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Images with labels, for `simulate` and `compare`.

    Make one with `load`, `from_arrays`, `from_torch` or `per_client`.

    Attributes:
        dataset: the checked arrays, with their scaling and the names of the classes.
    """

    dataset: Dataset

    @classmethod
    def load(
        cls, source: str | Path, *, data_dir: str | Path = "data", image_size: int | None = None
    ) -> Self:
        """Read a dataset by its name, from an .npz file or from a folder of images.

        Args:
            source: what `--dataset` takes.
            data_dir: folder of downloaded files.
            image_size: height and width that the images of a folder are resized to.

        Raises:
            UserError: it cannot be read, or is not what `docs/data-and-models.md` asks for.
        """
        return cls(load_dataset(str(source), Path(data_dir), image_size))

    @classmethod
    def from_arrays(
        cls,
        train: tuple[ArrayLike, ArrayLike],
        test: tuple[ArrayLike, ArrayLike],
        *,
        name: str = "data",
        class_names: Sequence[str] = (),
        channels: Channels | None = None,
    ) -> Self:
        """Take images and labels from arrays or tensors.

        Args:
            train: images and labels. Images: (N, H, W), (N, H, W, C) or (N, C, H, W) with one to
                four channels, uint8 or floats in [0, 1]. Labels: (N,), integers from 0.
            test: the same for the test part, which nothing is trained on.
            name: shown in tables and files.
            class_names: one for each class, in the order of the labels; empty: their numbers.
            channels: where the channels stand, for shapes that fit both ways.

        Raises:
            UserError: an array has the wrong shape, type, range or length.
        """
        parts = {"train": train, "test": test}
        return cls(_checked(name, parts, class_names, channels))

    @classmethod
    def from_torch(
        cls,
        train: TorchDataset,
        test: TorchDataset,
        *,
        name: str = "data",
        class_names: Sequence[str] = (),
    ) -> Self:
        """Take images and labels from two datasets of `torch.utils.data`.

        All items are read once, so a random augmentation in the dataset is frozen: leave it out
        and use `augment`.

        Args:
            train: items are pairs of an image and a label. Images: tensors (C, H, W) or (H, W),
                uint8 or floats in [0, 1], or PIL images; none of them normalised.
            test: the same for the test part.
            name: shown in tables and files.
            class_names: one for each class; empty: the dataset's `classes` if it has them.

        Raises:
            UserError: an item is no such pair, or images do not fit together.
        """
        names = class_names or getattr(train, "classes", ())
        return cls(_checked(name, {"train": train, "test": test}, names, "first"))

    @classmethod
    def per_client(
        cls,
        clients: Sequence[Part],
        *,
        test: Part,
        name: str = "data",
        class_names: Sequence[str] = (),
        channels: Channels | None = None,
    ) -> Self:
        """Take a part of the training data for each client, so that nothing is dealt.

        Args:
            clients: torch datasets, or pairs of arrays, as `from_torch` and `from_arrays` take
                them; at least four examples each.
            test: the test part.
            name: shown in tables and files.
            class_names: one for each class; empty: their numbers.
            channels: as in `from_arrays`.

        Raises:
            UserError: see `from_torch` and `from_arrays`; or a client has too few examples.
        """
        if not clients:
            raise UserError(f"{name}: per_client needs a part for each client, and there is none")
        found = [_arrays(name, f"client {c}", part, channels) for c, part in enumerate(clients)]
        for c, (images, labels) in enumerate(found):
            _check_lengths(name, f"client {c}", images, labels)
        shapes = {images.shape[1:] for images, _ in found}
        kinds = {images.dtype for images, _ in found}
        if len(shapes) > 1 or len(kinds) > 1:
            raise UserError(f"{name}: images of clients differ in shape or type; make them equal")
        train = (np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found]))
        parts = {"train": train, "test": _arrays(name, "x_test", test, channels)}
        dataset = _checked(name, parts, class_names, "last")
        ends = np.cumsum([len(labels) for _, labels in found])
        rows = tuple(np.split(np.arange(ends[-1], dtype=np.int64), ends[:-1]))
        return cls(replace(dataset, client_rows=rows))


def options_of(
    data: "Data | str | Path | None", options: Mapping[str, object]
) -> dict[str, object]:
    """Return the settings that follow from the data.

    Args:
        data: as `simulate` takes it.
        options: that were given beside it.

    Raises:
        UserError: an option contradicts the data.
    """
    if "dataset" in options:
        raise UserError("dataset cannot be given as an option; give it as the first argument")
    if data is None:
        return {}
    if not isinstance(data, Data):
        return {"dataset": str(data)}
    found: dict[str, object] = {"dataset": data.dataset.name}
    if not data.dataset.client_rows:
        return found
    for name in ("partition", "samples_per_client"):
        if options.get(name) is not None:
            raise UserError(f"{name} cannot be used with Data.per_client, which deals nothing")
    clients = len(data.dataset.client_rows)
    if options.get("clients", clients) != clients:
        raise UserError(f"clients must be {clients} for this data, or left out")
    # A preset may have said otherwise.
    return {**found, "clients": clients, "partition": _PER_CLIENT, "samples_per_client": None}


def _checked(
    name: str,
    parts: Mapping[str, Part],
    class_names: Sequence[str],
    channels: Channels | None,
) -> Dataset:
    raw: dict[str, NDArray[Any]] = {}
    for which, part in parts.items():
        raw[f"x_{which}"], raw[f"y_{which}"] = _arrays(name, f"x_{which}", part, channels)
    return dataset_of(name, check_arrays(name, raw), class_names)


def _check_lengths(name: str, whose: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    if len(images) != len(labels):
        raise UserError(
            f"{name}: {whose} has {len(images)} images and {len(labels)} labels; make them equal"
        )
    if len(labels) < _LEAST_OF_A_CLIENT:
        raise UserError(
            f"{name}: {whose} has {len(labels)} examples; a client needs {_LEAST_OF_A_CLIENT}"
        )


def _arrays(
    name: str, where: str, part: Part, channels: Channels | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return images with their channels last, and labels; neither is checked yet."""
    if isinstance(part, tuple):
        if len(part) != 2:  # noqa: PLR2004 - images and labels
            raise UserError(f"{name}: {where} must be a pair of images and labels")
        try:
            images, labels = (np.asarray(side) for side in part)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{name}: {where} is no array ({error})") from error
        return _channels_last(name, where, images, channels), labels
    if not isinstance(part, TorchDataset):
        raise UserError(
            f"{name}: {where} must be a pair of arrays or a torch dataset, "
            f"not {type(part).__name__}"
        )
    return _items(name, where, part)


def _items(name: str, where: str, part: TorchDataset) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read all items of a torch dataset."""
    images: list[NDArray[Any]] = []
    labels: list[int] = []
    for index in range(len(part)):
        try:
            image, label = part[index]
            array, number = np.asarray(image), int(label)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{name}: item {index} of {where} is no pair of an image and a label ({error})"
            ) from error
        if not hasattr(image, "getbands"):  # a tensor: channels first; a PIL image has them last
            array = _channels_last(name, where, array[None], "first")[0]
        if images and (array.shape, array.dtype) != (images[0].shape, images[0].dtype):
            raise UserError(
                f"{name}: item {index} of {where} has shape {array.shape} and type {array.dtype}, "
                f"item 0 {images[0].shape} and {images[0].dtype}; resize the images"
            )
        images.append(array)
        labels.append(number)
    if not images:
        raise UserError(f"{name}: {where} is empty")
    return np.stack(images), np.array(labels, dtype=np.int64)


def _channels_last(
    name: str, where: str, images: NDArray[Any], channels: Channels | None
) -> NDArray[Any]:
    """Move the channels of (N, C, H, W) behind the pixels."""
    if images.ndim != _COLOUR_AXES:
        return images  # grey, or an error that `check_images` names
    first, last = (1 <= images.shape[axis] <= MAX_CHANNELS for axis in (1, -1))
    if channels is None and first and last:
        raise UserError(
            f"{name}: {where} has shape {images.shape}, whose channels can stand first or last; "
            'say channels="first" or "last"'
        )
    is_first = channels == "first" or (channels is None and first)
    return images.transpose(0, 2, 3, 1) if is_first else images
