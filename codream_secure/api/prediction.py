"""`predict_files`: what a kept model says of images on this machine."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.data.folders import ENDINGS, images_below, read_image
from codream_secure.data.npz import read_images
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.models.trained import TrainedModel


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a model says of one image.

    Attributes:
        file: of the image.
        index: place in the file, from 0; None: the file is one image.
        label: the most probable class.
        name: of that class.
        probability: of that class, 0 to 1.
    """

    file: str
    index: int | None
    label: int
    name: str
    probability: float


def predict_files(model: TrainedModel, files: Sequence[Path]) -> Iterator[Prediction]:
    """Predict the classes of images.

    Args:
        model: as `load_model` reads it.
        files: images, which are resized to the size of the training; folders of images; or .npz
            files whose array `images` (else `x_test`) has them.

    Yields:
        A prediction for each image, in order.

    Raises:
        UserError: a file cannot be read, or its images do not fit the model.
    """
    for path in files:
        if path.suffix == ".npz":
            yield from _of(model, path, read_images(path), numbered=True)
        elif path.is_dir():
            for inside in images_below(path):
                yield from _of_image(model, inside)
        elif path.is_file() and path.suffix.lower() not in ENDINGS:
            raise UserError(
                f"{path}: give images ({', '.join(sorted(ENDINGS))}), folders of them, or .npz"
            )
        else:
            yield from _of_image(model, path)


def _of_image(model: TrainedModel, path: Path) -> Iterator[Prediction]:
    spec = model.description.spec
    image = read_image(path, (spec.height, spec.width))
    return _of(model, path, _with_channels(path, image, spec)[None], numbered=False)


def _with_channels(path: Path, image: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Return a grey image as colours if the model was trained on colours."""
    if image.shape[2] == spec.channels:
        return image
    if image.shape[2] == 1:
        return np.repeat(image, spec.channels, axis=2)
    raise UserError(f"{path}: it has colours, and the model was trained on {spec.channels} channel")


def _of(
    model: TrainedModel, path: Path, images: NDArray[np.generic], *, numbered: bool
) -> Iterator[Prediction]:
    try:
        found = model.probabilities(images)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for index, row in enumerate(found):
        label = int(row.argmax())
        yield Prediction(
            file=str(path),
            index=index if numbered else None,
            label=label,
            name=model.class_names[label],
            probability=round(float(row[label]), 4),
        )
