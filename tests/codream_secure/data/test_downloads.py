"""Downloaded datasets, read from small files in each one's own format; nothing is downloaded."""

import gzip
import hashlib
import importlib.util
import pickle  # noqa: TID251 - CIFAR's files are pickles, and the test has to write some
import sys
import types
import zipfile

import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets as sources

from codream_secure.data import InputSpec, Scaling, load_dataset
from codream_secure.errors import UserError

RNG = np.random.default_rng(0)
NAMES = ("mnist", "fashion-mnist", "emnist", "svhn", "cifar10", "cifar100", "pathmnist")


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324 - what torchvision checks


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def same(floats, expected):
    np.testing.assert_allclose(floats * 255, expected, atol=1e-4)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever wants to download fails as without network."""

    def refuse(*_, **__):
        print("Downloading ...")
        raise OSError("urlopen error:\nno network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize(
    ("name", "folder", "scaling"),
    [
        ("mnist", "MNIST/raw", Scaling((0.1307,), (0.3081,))),
        ("fashion-mnist", "FashionMNIST/raw", Scaling((0.2860,), (0.3530,))),
    ],
)
def test_mnist_and_fashion_mnist(tmp_path, monkeypatch, name, folder, scaling):
    raw = tmp_path / folder
    raw.mkdir(parents=True)
    images = {"train": pixels(5, 28, 28), "t10k": pixels(3, 28, 28)}
    resources = []
    for split, array in images.items():
        labels = np.arange(len(array), dtype=np.uint8)
        for kind, content in (("images-idx3", array), ("labels-idx1", labels)):
            path = raw / f"{split}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(content)))
            resources.append((path.name, md5(path)))
    source = sources.MNIST if name == "mnist" else sources.FashionMNIST
    monkeypatch.setattr(source, "resources", resources)
    dataset = load_dataset(name, tmp_path)
    assert dataset.spec == InputSpec(1, 28, 28, 10)
    assert dataset.scaling == scaling
    assert dataset.x_train.shape == (5, 1, 28, 28)
    assert dataset.y_test.tolist() == [0, 1, 2]
    same(dataset.x_test[:, 0], images["t10k"])


def test_emnist_is_balanced_and_upright(tmp_path, monkeypatch):
    """Its one archive holds every split, gzipped, with columns where MNIST's has rows."""
    raw = tmp_path / "EMNIST/raw"
    raw.mkdir(parents=True)
    upright = {"train": pixels(4, 28, 28), "test": pixels(2, 28, 28)}
    labels = {"train": np.array([0, 46, 10, 3], np.uint8), "test": np.array([46, 1], np.uint8)}
    with zipfile.ZipFile(raw / "gzip.zip", "w") as archive:
        for split, array in upright.items():
            for kind, content in (
                ("images-idx3", array.transpose(0, 2, 1)),
                ("labels-idx1", labels[split]),
            ):
                for name in ("balanced", "digits"):
                    member = f"gzip/emnist-{name}-{split}-{kind}-ubyte.gz"
                    archive.writestr(member, gzip.compress(idx(content)))
    monkeypatch.setattr(sources.EMNIST, "md5", md5(raw / "gzip.zip"))
    dataset = load_dataset("emnist", tmp_path)
    assert dataset.spec == InputSpec(1, 28, 28, 47)
    assert dataset.y_train.tolist() == [0, 46, 10, 3]
    same(dataset.x_train[:, 0], upright["train"])
    same(dataset.x_test[:, 0], upright["test"])


def cifar_batch(path, images, labels, key):
    """Write rows of 1024 reds, greens and blues, as dumped by Python 2."""
    path.write_bytes(pickle.dumps({"data": images.reshape(len(images), -1), key: labels}))
    return [path.name, md5(path)]


@pytest.mark.parametrize(
    ("name", "classes"), [("cifar10", 10), ("cifar100", 100)], ids=["cifar10", "cifar100"]
)
def test_cifar(tmp_path, monkeypatch, name, classes):
    source = getattr(sources, name.upper())
    key = "labels" if classes == 10 else "fine_labels"
    folder = tmp_path / source.base_folder
    folder.mkdir()
    names = [entry[0] for entry in source.train_list]
    train, test = pixels(2 * len(names), 3, 32, 32), pixels(3, 3, 32, 32)
    batches = [
        cifar_batch(folder / file, train[2 * i : 2 * i + 2], [0, classes - 1], key)
        for i, file in enumerate(names)
    ]
    monkeypatch.setattr(source, "train_list", batches)
    batch = cifar_batch(folder / source.test_list[0][0], test, [1, 2, 3], key)
    monkeypatch.setattr(source, "test_list", [batch])
    meta = folder / source.meta["filename"]
    meta.write_bytes(pickle.dumps({source.meta["key"]: [str(i) for i in range(classes)]}))
    monkeypatch.setitem(source.meta, "md5", md5(meta))
    dataset = load_dataset(name, tmp_path)
    assert dataset.spec == InputSpec(3, 32, 32, classes)
    assert dataset.y_train.tolist() == [0, classes - 1] * len(names)
    assert dataset.y_test.tolist() == [1, 2, 3]
    same(dataset.x_train, train)
    same(dataset.x_test, test)
    assert dataset.x_train.flags.c_contiguous


def test_svhn(tmp_path, monkeypatch):
    """Images are H x W x C x N, and the digit 0 has label 10."""
    images = {"train": pixels(32, 32, 3, 4), "test": pixels(32, 32, 3, 2)}
    labels = {"train": [10, 1, 2, 9], "test": [3, 10]}
    files = dict(sources.SVHN.split_list)
    for split, array in images.items():
        path = tmp_path / f"{split}_32x32.mat"
        y = np.array(labels[split], np.uint8)[:, None]
        savemat(path, {"X": array, "y": y}, do_compression=True)
        files[split] = [files[split][0], path.name, md5(path)]
    monkeypatch.setattr(sources.SVHN, "split_list", files)
    dataset = load_dataset("svhn", tmp_path)
    assert dataset.spec == InputSpec(3, 32, 32, 10)
    assert dataset.y_train.tolist() == [0, 1, 2, 9]
    assert dataset.y_test.tolist() == [3, 0]
    same(dataset.x_test, images["test"].transpose(3, 2, 0, 1))


def write_pathmnist(path, **changes):
    arrays = {}
    for split, count in (("train", 5), ("val", 3), ("test", 2)):
        arrays[f"{split}_images"] = pixels(count, 28, 28, 3)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None]
    arrays |= changes
    np.savez_compressed(path, **{key: array for key, array in arrays.items() if array is not None})
    return arrays


def test_pathmnist_is_in_colour_and_needs_no_package_where_its_file_is(tmp_path):
    arrays = write_pathmnist(tmp_path / "pathmnist.npz")
    dataset = load_dataset("pathmnist", tmp_path)
    assert dataset.spec == InputSpec(3, 28, 28, 9)
    assert dataset.y_train.tolist() == [0, 1, 2, 3, 4]
    assert dataset.y_test.tolist() == [0, 1]
    same(dataset.x_train, arrays["train_images"].transpose(0, 3, 1, 2))


def test_pathmnist_is_downloaded_by_medmnist(tmp_path, monkeypatch):
    def fake(*, split, root, download):
        assert download
        write_pathmnist(tmp_path / "new/pathmnist.npz")

    monkeypatch.setitem(sys.modules, "medmnist", types.SimpleNamespace(PathMNIST=fake))
    assert load_dataset("pathmnist", tmp_path / "new").spec.classes == 9


@pytest.mark.skipif(importlib.util.find_spec("medmnist") is None, reason="medmnist is an extra")
def test_medmnist_is_called_as_it_wants_to_be(tmp_path):
    with pytest.raises(UserError, match="Automatic download failed"):
        load_dataset("pathmnist", tmp_path)


def test_without_medmnist_the_way_to_install_it_is_shown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(UserError) as caught:
        load_dataset("pathmnist", tmp_path)
    assert "pip install 'codream-secure[medmnist]'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 truncated"])
def test_a_damaged_pathmnist_is_one_line(tmp_path, content):
    (tmp_path / "pathmnist.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot download or read pathmnist: put its files in"):
        load_dataset("pathmnist", tmp_path)


def test_a_pathmnist_without_an_array_is_one_line(tmp_path):
    write_pathmnist(tmp_path / "pathmnist.npz", test_labels=None)
    with pytest.raises(UserError, match="test_labels"):
        load_dataset("pathmnist", tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pathmnist"])
def test_a_failed_download_is_one_line_and_stdout_stays_clean(tmp_path, capsys, name):
    with pytest.raises(UserError) as caught:
        load_dataset(name, tmp_path)
    text = str(caught.value)
    assert text.startswith(f"cannot download or read {name}: put its files in {tmp_path}")
    assert "\n" not in text
    assert "--dataset PATH.npz" in text
    assert capsys.readouterr().out == ""
