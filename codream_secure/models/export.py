"""A trained model as one file for other programs: ONNX or TorchScript, by PyTorch's exporters."""

import io
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from codream_secure.data.pixels import PixelScale
from codream_secure.errors import UserError
from codream_secure.models.trained import TrainedModel
from codream_secure.storage.files import replace

Kind = Literal["onnx", "torchscript"]
ENDINGS = {"onnx": ".onnx", "torchscript": ".pt"}


class _FromPixels(nn.Module):
    """A model with its scaling: pixels in [0, 1], (N, C, H, W), to probabilities, (N, classes)."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self._module = model.module
        self._scale = PixelScale(model.description.scaling)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._module(self._scale.scale(images))
        return logits.softmax(dim=1)


def export_model(model: TrainedModel, path: Path, kind: Kind) -> Path:
    """Write a model with its scaling: float32 pixels in [0, 1] in, probabilities out.

    Args:
        model: of a run or of a site.
        path: of the file, which must not exist.
        kind: of the file.

    Raises:
        UserError: the file exists or cannot be written, a package is missing, or PyTorch cannot
            export this model.
    """
    if path.exists():
        raise UserError(f"{path} is there already; name another file with --out")
    if kind == "onnx" and find_spec("onnxscript") is None:
        raise UserError("ONNX needs another package: pip install 'codream-secure[onnx]'")
    spec = model.description.spec
    example = torch.zeros(2, spec.channels, spec.height, spec.width)
    whole = _FromPixels(model).eval()
    try:
        with warnings.catch_warnings():  # the exporters warn about their own insides
            warnings.simplefilter("ignore")
            content = _onnx(whole, example) if kind == "onnx" else _torchscript(whole, example)
    except Exception as error:  # whatever an exporter says of somebody's model
        reason = str(error).strip().partition("\n")[0]
        name = model.description.architecture
        raise UserError(f"PyTorch cannot export {name} as {kind}: {reason}") from error
    replace(path, content)
    return path


def _onnx(whole: nn.Module, example: Tensor) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        whole,
        (example,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("no program came out")
    return bytes(program.model_proto.SerializeToString())


def _torchscript(whole: nn.Module, example: Tensor) -> bytes:
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(whole, example), file)  # type: ignore[no-untyped-call]
    return file.getvalue()
