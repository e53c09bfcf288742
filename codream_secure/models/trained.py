"""A trained model that can be kept: it predicts, and goes to a folder and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from codream_secure.data.npz import check_images
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.errors import UserError
from codream_secure.models.build import build_model
from codream_secure.models.custom import GIVEN_PREFIX, Source, builder_of
from codream_secure.models.evaluate import logits_of
from codream_secure.models.layers import Norm
from codream_secure.storage.files import replace

FORMAT: Final = 1
DESCRIPTION, WEIGHTS, CARD = "model.json", "weights.safetensors", "README.md"

_BATCH = 256


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model came about, and what may be said of its privacy.

    Attributes:
        method: `codream` or another method's name.
        dataset: its name.
        clients: how many learned together.
        round: the round after which the weights were taken; None: no round was finished.
        test_accuracy: on the dataset's test part, 0 to 1. No epsilon covers it.
        epsilon, delta, unit: the guarantee of the run; None: it was trained without noise, and is
            to be guarded like the data that it was trained on.
    """

    method: str
    dataset: str
    clients: int
    round: int | None
    test_accuracy: float | None
    epsilon: float | None
    delta: float | None
    unit: str | None


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file model.json: all that is needed beside the weights."""

    format: int
    written_by: str
    architecture: str
    width: int | None
    norm: Norm
    spec: InputSpec
    scaling: Scaling
    class_names: tuple[str, ...]
    training: Training


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """A model after its training, with what it takes to use it.

    Attributes:
        module: the network, on the CPU and in eval mode. It maps scaled images, float32
            (N, C, H, W), to logits, float32 (N, classes).
        description: architecture, classes, scaling and training.
    """

    module: nn.Module
    description: Description

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the labels stand for, in their order."""
        return self.description.class_names

    def probabilities(self, images: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each class.

        Args:
            images: one image or several, (H, W), (H, W, C), (N, H, W), (N, H, W, C) or
                (N, C, H, W), uint8 or floats in [0, 1].

        Returns:
            float32, (N, classes); each row adds up to 1.

        Raises:
            UserError: the images have another shape than those of the training, or wrong values.
        """
        x = PixelScale(self.description.scaling).scale(torch.from_numpy(self._images(images)))
        with torch.no_grad():
            logits = [logits_of(self.module, part, bf16=False) for part in torch.split(x, _BATCH)]
        return np.asarray(torch.cat(logits).softmax(dim=1).numpy())

    def predict(self, images: ArrayLike) -> NDArray[np.int64]:
        """Return the most probable class of each image: int64, (N,); see `probabilities`."""
        return np.asarray(self.probabilities(images).argmax(axis=1), dtype=np.int64)

    def save(self, folder: str | Path) -> Path:
        """Write the model into a folder: weights, `model.json`, and a card for readers.

        Args:
            folder: new or empty.

        Returns:
            The folder; `load_model` reads it.

        Raises:
            UserError: the folder holds something already, or cannot be written.
        """
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"{path} is not empty; name another folder for the model")
            state = self.module.state_dict()
            replace(path / WEIGHTS, save({k: v.contiguous().clone() for k, v in state.items()}))
            replace(path / CARD, _card(self.description))
            # Last: a folder without it is no model yet.
            told = msgspec.json.format(msgspec.json.encode(self.description), indent=2)
            replace(path / DESCRIPTION, told + b"\n")
        except OSError as error:
            raise UserError(f"{path}: the model cannot be written: {error.strerror}") from None
        return path

    def _images(self, images: ArrayLike) -> NDArray[np.float32]:
        """Return images as float32 (N, C, H, W) in [0, 1]."""
        try:
            array = np.asarray(images)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"images: no array ({error})") from error
        spec = self.description.spec
        shape = (spec.channels, spec.height, spec.width)
        last = (*shape[1:], shape[0])
        if array.shape in {shape, last, shape[1:]}:
            array = array[None]
        if array.shape[1:] == shape != last:
            array = array.transpose(0, 2, 3, 1)
        found = check_images("images", "the array", array)
        if found.shape[1:] != shape:
            raise UserError(
                f"images have shape (C, H, W) {found.shape[1:]}, and the model was trained on "
                f"{shape}; resize them"
            )
        return found


def load_model(folder: str | Path, model: Source | None = None) -> TrainedModel:
    """Read a model that `TrainedModel.save` wrote.

    Args:
        folder: of the model.
        model: makes the network, for a model whose function cannot be imported by its name.

    Raises:
        UserError: the folder holds no model, it is damaged, or the network does not fit it.
    """
    path = Path(folder)
    told = _described(path)
    if model is not None:
        module = builder_of(told.architecture, model)(told.spec)
    elif told.architecture.startswith(GIVEN_PREFIX):
        raise UserError(
            f"{path}: the function that made the model has no name to import; give it as model="
        )
    else:
        module = build_model(told.architecture, told.spec, width=told.width, norm=told.norm, seed=0)
    try:
        module.load_state_dict(load_file(path / WEIGHTS))
    except OSError as error:
        raise UserError(f"{path}: {WEIGHTS} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: {WEIGHTS} does not fit {told.architecture} ({reason}); "
            "take the folder from a copy, or give the function that made the model"
        ) from None
    return TrainedModel(module.eval(), told)


def _described(path: Path) -> Description:
    try:
        text = (path / DESCRIPTION).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: no model ({DESCRIPTION}: {error.strerror}); name a folder that save() wrote"
        ) from None
    try:
        told = msgspec.json.decode(text, type=Description)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {DESCRIPTION} is damaged ({error}); use a copy") from None
    if told.format != FORMAT:
        raise UserError(
            f"{path}: {DESCRIPTION} has format {told.format}; this version reads {FORMAT}"
        )
    return told


def _card(told: Description) -> str:
    """Return a model card: what the model is, and how it may be used."""
    trained = told.training
    spec = told.spec
    accuracy = "not measured" if trained.test_accuracy is None else f"{trained.test_accuracy:.1%}"
    if trained.epsilon is None:
        privacy = (
            "Trained without noise. The model can give away single training examples: guard it "
            "like the data."
        )
    else:
        privacy = (
            f"({trained.epsilon:.4g}, {trained.delta:g})-differentially private with one "
            f"{trained.unit} as the unit. The accuracy above is not covered."
        )
    return f"""# {told.architecture}, trained by {trained.method}

- Written by codream-secure {told.written_by}; `codream_secure.load_model` reads this folder.
- Input: {spec.channels} x {spec.height} x {spec.width} pixels in [0, 1].
- Classes: {", ".join(told.class_names)}.
- Training: {trained.clients} clients on {trained.dataset}, round {trained.round}.
- Accuracy on the test part: {accuracy}.
- Privacy: {privacy}
"""
