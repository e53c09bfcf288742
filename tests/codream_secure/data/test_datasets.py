import gzip
import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torchvision import datasets as sources

from codream_secure.data import DATASET_NAMES, InputSpec, Scaling, load_dataset
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


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.with_suffix("").write_bytes(header + sizes + array.tobytes())
    path.write_bytes(gzip.compress(header + sizes + array.tobytes()))


@pytest.mark.parametrize(
    ("name", "folder", "scaling"),
    [
        ("mnist", "MNIST/raw", Scaling((0.1307,), (0.3081,))),
        ("fashion-mnist", "FashionMNIST/raw", Scaling((0.2860,), (0.3530,))),
    ],
)
def test_files_in_the_data_folder_are_read_without_network(tmp_path, name, folder, scaling):
    raw = tmp_path / folder
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("t10k", 3)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(raw / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(raw / f"{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    dataset = load_dataset(name, tmp_path)
    assert dataset.spec == InputSpec(1, 28, 28, 10)
    assert dataset.scaling == scaling
    assert dataset.x_train.shape == (5, 1, 28, 28)
    assert dataset.y_test.tolist() == [0, 1, 2]
    np.testing.assert_allclose(dataset.x_test[:, 0] * 255, images, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "class_name", "held"),
    [
        ("cifar10", "CIFAR10", {"data": np.zeros((2, 32, 32, 3), np.uint8), "targets": [3, 4]}),
        ("svhn", "SVHN", {"data": np.zeros((2, 3, 32, 32), np.uint8), "labels": np.array([3, 4])}),
    ],
)
def test_colour_images_come_channels_first(tmp_path, monkeypatch, name, class_name, held):
    monkeypatch.setattr(sources, class_name, lambda **_: SimpleNamespace(**held))
    dataset = load_dataset(name, tmp_path)
    assert dataset.spec == InputSpec(3, 32, 32, 10)
    assert dataset.x_train.shape == (2, 3, 32, 32)
    assert dataset.x_train.dtype == np.float32
    assert dataset.y_test.tolist() == [3, 4]
    assert len(dataset.scaling.mean) == 3


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "svhn"])
def test_a_failed_download_is_one_line_and_stdout_stays_clean(tmp_path, monkeypatch, capsys, name):
    def offline(**_):
        print("Downloading ...")
        raise RuntimeError("Error downloading:\nurlopen error")

    for class_name in ("MNIST", "FashionMNIST", "CIFAR10", "SVHN"):
        monkeypatch.setattr(sources, class_name, offline)
    with pytest.raises(UserError) as caught:
        load_dataset(name, tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(tmp_path) in text
    assert "--dataset PATH.npz" in text
    assert capsys.readouterr().out == ""


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
