"""An exported model gives the probabilities of the model that it was made from."""

import sys

import numpy as np
import pytest
import torch
from kept_models import IMAGES, kept_model

from codream_secure import UserError
from codream_secure.models.export import export_model

PIXELS = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)).astype(np.float32) / 255


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:FutureWarning")
def test_torchscript_gives_the_probabilities_of_any_number_of_images(tmp_path):
    model = kept_model()
    path = export_model(model, tmp_path / "m.pt", "torchscript")
    with torch.no_grad():
        found = torch.jit.load(path)(torch.from_numpy(PIXELS))
    assert found.numpy() == pytest.approx(model.probabilities(IMAGES), abs=1e-5)


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match="there already"):
        export_model(kept_model(), tmp_path / "m.pt", "torchscript")
    assert (tmp_path / "m.pt").read_bytes() == b"mine"


def test_onnx_without_its_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="codream-secure\\[onnx\\]"):
        export_model(kept_model(), tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx_gives_the_probabilities_of_any_number_of_images(tmp_path):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model = kept_model()
    path = export_model(model, tmp_path / "m.onnx", "onnx")
    (found,) = reference.ReferenceEvaluator(str(path)).run(None, {"images": PIXELS})
    assert found == pytest.approx(model.probabilities(IMAGES), abs=1e-5)
