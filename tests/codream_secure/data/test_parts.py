"""Images and labels of every format must agree with each other."""

import numpy as np
import pytest

from codream_secure.data import load_dataset
from codream_secure.errors import UserError


def pathmnist(folder, **changed):
    arrays = {
        "train_images": np.zeros((60, 28, 28, 3), np.uint8),
        "train_labels": (np.arange(60) % 9)[:, None],
        "test_images": np.zeros((20, 28, 28, 3), np.uint8),
        "test_labels": (np.arange(20) % 9)[:, None],
    }
    np.savez(folder / "pathmnist.npz", **(arrays | changed))


BAD = {
    "fewer labels": ({"train_labels": np.zeros((30, 1), int)}, "60 images and 30 labels"),
    "more labels": ({"test_labels": np.zeros((21, 1), int)}, "20 images and 21 labels"),
    "unknown class": ({"train_labels": np.full((60, 1), 11)}, "from 11 to 11, not 0 to 8"),
    "negative": ({"test_labels": -np.ones((20, 1), int)}, "from -1 to -1, not 0 to 8"),
    "two sizes": ({"train_images": np.zeros((60, 64, 64, 3), np.uint8)}, "differ in shape"),
    "two depths": ({"test_images": np.zeros((20, 28, 28, 1), np.uint8)}, "differ in shape"),
    "no numbers": ({"train_images": np.full((60, 28, 28, 3), np.nan)}, "has NaN"),
    "out of range": ({"test_images": np.full((20, 28, 28, 3), 3.0)}, "from 3 to 3"),
    "of no known scale": ({"test_images": np.full((20, 28, 28, 3), 300)}, "has type int64"),
    "yes or no": ({"train_images": np.ones((60, 28, 28, 3), bool)}, "has type bool"),
    "nothing": (
        {"test_images": np.zeros((0, 28, 28, 3), np.uint8), "test_labels": np.zeros((0, 1), int)},
        "test part is empty",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_do_not_agree_are_refused_in_one_line(tmp_path, name):
    changed, says = BAD[name]
    pathmnist(tmp_path, **changed)
    with pytest.raises(UserError, match=says) as caught:
        load_dataset("pathmnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_agree_are_read(tmp_path):
    pathmnist(tmp_path)
    assert load_dataset("pathmnist", tmp_path).x_train.shape == (60, 3, 28, 28)


def test_floats_are_not_divided_as_bytes_are(tmp_path):
    bytes_ = np.random.default_rng(0).integers(0, 256, (60, 28, 28, 3), dtype=np.uint8)
    pathmnist(tmp_path, train_images=bytes_)
    of_bytes = load_dataset("pathmnist", tmp_path).x_train
    for kind in (np.float32, np.float64):
        pathmnist(tmp_path, train_images=(bytes_ / 255).astype(kind))
        of_floats = load_dataset("pathmnist", tmp_path).x_train
        np.testing.assert_allclose(of_floats, of_bytes, atol=1e-6)
    assert of_bytes.max() == 1
