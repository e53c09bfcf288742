"""Predictions for files are those of the model for their pixels."""

import numpy as np
import pytest
from kept_models import IMAGES, kept_model
from PIL import Image

from codream_secure import UserError
from codream_secure.api.prediction import predict_files
from codream_secure.data.spec import InputSpec


def test_images_folders_and_arrays_give_the_same(tmp_path):
    model = kept_model()
    folder = tmp_path / "scans"
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(len(IMAGES))]
    for path, pixels in zip(paths, IMAGES, strict=True):
        Image.fromarray(pixels).save(path)
    np.savez(tmp_path / "all.npz", images=IMAGES)
    expected = model.probabilities(IMAGES)
    for files in (paths, [folder], [tmp_path / "all.npz"]):
        found = list(predict_files(model, files))
        assert [one.label for one in found] == expected.argmax(1).tolist()
        assert [one.name for one in found] == ["abcd"[k] for k in expected.argmax(1)]
        assert [one.probability for one in found] == pytest.approx(expected.max(1), abs=1e-4)
    assert [one.index for one in found] == [0, 1, 2, 3, 4]


def test_another_size_is_resized_and_grey_becomes_colours(tmp_path):
    Image.new("L", (60, 80), 128).save(tmp_path / "large.png")
    (found,) = predict_files(kept_model(), [tmp_path / "large.png"])
    expected = kept_model().probabilities(np.full((8, 6, 3), 128, np.uint8))
    assert found.probability == pytest.approx(expected.max(), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("notes.txt", "give images"), ("other.npz", "resize them"), ("bad.png", "readable image")],
)
def test_files_that_do_not_fit_are_one_line_with_their_name(tmp_path, name, reason):
    path = tmp_path / name
    path.write_bytes(b"x")
    if name == "other.npz":
        np.savez(path, x_test=np.zeros((2, 5, 5, 3), np.uint8))
    with pytest.raises(UserError, match=reason) as caught:
        list(predict_files(kept_model(), [path]))
    assert str(path) in str(caught.value)


def test_colours_for_a_model_of_grey_images_are_refused(tmp_path):
    Image.new("RGB", (6, 8)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match="1 channel"):
        list(predict_files(kept_model(InputSpec(1, 8, 6, 4)), [tmp_path / "c.png"]))
