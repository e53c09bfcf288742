"""A model goes to a folder and back, and predicts the same."""

import json

import numpy as np
import pytest
import torch
from kept_models import IMAGES, SPEC, TRAINING, kept_model
from torch import nn

from codream_secure import UserError, load_model
from codream_secure.models.trained import Training


def make(architecture="resnet8", **more):
    width = 4 if architecture == "resnet8" else None
    return kept_model(architecture=architecture, width=width, norm="group", **more)


def test_probabilities_are_those_of_the_scaled_images():
    model = make()
    x = (IMAGES.transpose(0, 3, 1, 2) / 255 - np.array([0.5, 0.4, 0.3]).reshape(3, 1, 1)) / (
        np.array([0.2, 0.3, 0.4]).reshape(3, 1, 1)
    )
    with torch.no_grad():
        expected = model.module(torch.tensor(x, dtype=torch.float32)).softmax(1).numpy()
    found = model.probabilities(IMAGES)
    assert found == pytest.approx(expected, abs=1e-5)
    assert model.predict(IMAGES).tolist() == expected.argmax(1).tolist()


def test_one_image_and_other_layouts_give_the_same():
    model = make()
    one = model.probabilities(IMAGES[2])
    assert one.shape == (1, 4)
    first = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    for images in (first, first[2], IMAGES / np.float32(255)):
        found = model.probabilities(images)
        assert found[2 if len(found) > 1 else 0] == pytest.approx(one[0], abs=1e-5)


def test_a_folder_gives_the_same_model_again(tmp_path):
    model = make()
    assert model.save(tmp_path / "kept") == tmp_path / "kept"
    again = load_model(tmp_path / "kept")
    assert np.array_equal(again.probabilities(IMAGES), model.probabilities(IMAGES))
    assert again.description == model.description
    card = (tmp_path / "kept/README.md").read_text(encoding="utf-8")
    assert "guard it like the data" in card


def test_the_card_tells_the_guarantee(tmp_path):
    told = {"epsilon": 7.5, "delta": 1e-5, "unit": "example"}
    private = Training(**{**{f: getattr(TRAINING, f) for f in TRAINING.__struct_fields__}, **told})
    make(training=private).save(tmp_path / "kept")
    card = (tmp_path / "kept/README.md").read_text(encoding="utf-8")
    assert "(7.5, 1e-05)-differentially private with one example" in card


def net(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.height * spec.width, 4))


def test_a_model_without_a_name_needs_its_function(tmp_path):
    model = make("python:net", module=net(SPEC))
    model.save(tmp_path / "kept")
    with pytest.raises(UserError, match="give it as model="):
        load_model(tmp_path / "kept")
    again = load_model(tmp_path / "kept", net)
    assert np.array_equal(again.predict(IMAGES), model.predict(IMAGES))
    with pytest.raises(UserError, match="does not fit"):
        load_model(
            tmp_path / "kept", lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 4, bias=False))
        )


def spoil(name, change):
    def spoiled(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return spoiled


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.json").unlink(), "no model"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "cannot be read|does not fit"),
        (spoil("model.json", lambda b: b[:20]), "damaged"),
        (spoil("model.json", lambda b: b.replace(b'"format": 1', b'"format": 9')), "format 9"),
        (spoil("model.json", lambda b: b.replace(b'"width": 4', b'"width": 8')), "does not fit"),
        (spoil("model.json", lambda b: b.replace(b"resnet8", b"resnet9")), "unknown model"),
        (spoil("model.json", lambda b: b.replace(b'"height": 8', b'"height": 0')), "damaged"),
        (spoil("weights.safetensors", lambda b: b[:-9]), "does not fit"),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path, damage, words):
    folder = make().save(tmp_path / "kept")
    assert json.loads((folder / "model.json").read_text())["format"] == 1
    damage(folder)
    with pytest.raises(UserError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 9, 6, 3), np.uint8), "trained on"),
        (np.zeros((2, 8, 6, 3), np.int32), "uint8"),
        (np.full((2, 8, 6, 3), 7.0), "bring them to"),
        (np.zeros((0, 8, 6, 3), np.uint8), "empty"),
        ("picture.png", "shape"),
    ],
)
def test_images_of_another_kind_are_refused(images, words):
    with pytest.raises(UserError, match=words):
        make().predict(images)


def test_a_folder_that_is_in_use_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        make().save(tmp_path)
    with pytest.raises(UserError, match="cannot be"):
        make().save(tmp_path / "mine.txt")
