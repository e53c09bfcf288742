import hashlib
import subprocess
import sys

import numpy as np
import pytest

from codream_secure.data import DATASET_NAMES, InputSpec, Scaling, load_dataset
from codream_secure.data.downloads import CLASSES
from codream_secure.errors import UserError


def test_importing_the_room_imports_neither_torch_nor_scikit_learn():
    code = (
        "import sys, codream_secure.data as d, pathlib\n"
        "assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)\n"
        "d.load_dataset('digits', pathlib.Path('.'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_digits_has_its_fixed_split(tmp_path):
    digits = load_dataset("digits", tmp_path)
    assert digits.spec == InputSpec(1, 8, 8, 10)
    assert digits.scaling == Scaling((0.5,), (0.5,))
    assert digits.x_train.shape == (1397, 1, 8, 8)
    assert digits.x_train.dtype == digits.x_test.dtype == np.float32
    assert digits.y_train.dtype == digits.y_test.dtype == np.int64
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 1)
    assert np.bincount(digits.y_test).tolist() == [40] * 10
    # The split may never change between versions: results would stop being comparable.
    pixels = (digits.x_test * 16).astype(np.uint8).tobytes() + digits.y_test.tobytes()
    assert hashlib.sha256(pixels).hexdigest() == (
        "589f988921db55b0a647789b04f56f056671de927a1a3c2b7436cb2e869dbf05"
    )


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=", ".join(DATASET_NAMES)):
        load_dataset("imagenet", tmp_path)


@pytest.mark.parametrize("name", ["digits", "mnist", "mine.npz"])
def test_an_image_size_is_for_folders(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} has its own"):
        load_dataset(name, tmp_path, image_size=32)


@pytest.mark.parametrize("sizes", [(0, 8, 8, 10), (1, 8, 8, 0), (1, -8, 8, 10)])
def test_a_spec_is_positive(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        InputSpec(*sizes)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((), ()), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((float("nan"),), (1.0,))],
)
def test_scaling_can_be_divided_by(mean, std):
    with pytest.raises(ValueError, match="scaling"):
        Scaling(mean, std)


def test_every_downloaded_dataset_has_a_name_and_every_name_is_loaded():
    assert ("digits", *CLASSES) == DATASET_NAMES
