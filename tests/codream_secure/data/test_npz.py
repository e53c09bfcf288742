import contextlib
import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codream_secure.data import InputSpec, Scaling, load_dataset
from codream_secure.errors import UserError


def arrays(**changes):
    good = {
        "x_train": np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6),
        "y_train": np.array([0, 1, 2, 1]),
        "x_test": np.full((2, 5, 6), 255, np.uint8),
        "y_test": np.array([3, 0]),
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


@pytest.fixture
def load(tmp_path):
    def write_and_load(**changes):
        path = tmp_path / "mine.npz"
        np.savez_compressed(path, **arrays(**changes))
        return load_dataset(str(path), tmp_path)

    return write_and_load


def test_a_good_file_of_grey_bytes(load):
    dataset = load()
    assert dataset.name == "mine.npz"
    assert dataset.spec == InputSpec(1, 5, 6, 4)
    assert dataset.scaling == Scaling((0.5,), (0.5,))
    assert dataset.x_train.shape == (4, 1, 5, 6)
    assert dataset.x_train.dtype == np.float32
    assert dataset.x_train[0, 0, 0, 1] == np.float32(1) / np.float32(255)
    assert dataset.x_test.max() == 1
    assert dataset.y_train.dtype == np.int64


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, ">f8"])
def test_channels_move_first(load, channels, dtype):
    x_train = np.zeros((4, 5, 6, channels), dtype)
    x_train[1, 2, 3, -1] = 1
    dataset = load(x_train=x_train, x_test=x_train[:2])
    assert dataset.spec == InputSpec(channels, 5, 6, 4)
    assert len(dataset.scaling.std) == channels
    pixel = dataset.x_train[1, channels - 1, 2, 3]
    assert pixel == (np.float32(1) / np.float32(255) if dtype == np.uint8 else 1)
    assert dataset.x_train.dtype == np.float32
    assert dataset.x_train.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, ">i4"])
def test_any_integers_are_labels(load, dtype):
    labels = np.array([3, 0, 1, 2], dtype)
    assert load(y_train=labels).y_train.tolist() == [3, 0, 1, 2]


IMAGES = np.zeros((4, 5, 6), np.float32)
BAD = {
    "missing key": ({"y_test": None}, "no array y_test"),
    "one axis": ({"x_train": np.zeros(4, np.uint8)}, "N x H x W"),
    "five axes": ({"x_train": np.zeros((4, 5, 6, 1, 1), np.uint8)}, "N x H x W"),
    "channels first": ({"x_train": np.zeros((4, 3, 32, 32), np.uint8)}, "channels last"),
    "no channels": ({"x_train": np.zeros((4, 5, 6, 0), np.uint8)}, "channels last"),
    "empty train": ({"x_train": np.zeros((0, 5, 6), np.uint8)}, "x_train is empty"),
    "empty test": ({"x_test": np.zeros((0, 5, 6), np.uint8)}, "x_test is empty"),
    "empty labels": ({"y_test": np.zeros(0, int)}, "y_test is empty"),
    "no height": ({"x_train": np.zeros((4, 0, 6), np.uint8)}, "x_train is empty"),
    "lengths": ({"y_train": np.zeros(3, int)}, "4 images and y_train 3 labels"),
    "shapes": ({"x_test": np.zeros((2, 6, 5), np.uint8)}, "differ in shape"),
    "colours": ({"x_test": np.zeros((2, 5, 6, 3), np.uint8)}, "differ in shape"),
    "objects": ({"x_train": np.array([[[None]]] * 4)}, "plain arrays"),
    "object labels": ({"y_train": np.array([0, 1, 2, None])}, "plain arrays"),
    "strings": ({"x_train": np.full((4, 5, 6), "a")}, "uint8"),
    "signed pixels": ({"x_train": np.zeros((4, 5, 6), np.int64)}, "uint8"),
    "complex": ({"x_train": np.zeros((4, 5, 6), complex)}, "uint8"),
    "nan": ({"x_train": np.where(np.arange(6) == 2, np.nan, IMAGES)}, "NaN"),
    "infinite": ({"x_test": np.where(np.arange(6) == 2, np.inf, IMAGES[:2])}, "NaN"),
    "bytes as floats": ({"x_train": IMAGES + 255}, "divide by"),
    "normalised": ({"x_train": IMAGES - 0.5}, "undo any normalisation"),
    "float labels": ({"y_train": np.array([0.0, 1, 2, 3])}, "one integer"),
    "one-hot labels": ({"y_train": np.eye(4, dtype=int)}, "one integer"),
    "bool labels": ({"y_train": np.array([True] * 4)}, "one integer"),
    "scalar labels": ({"y_train": np.array(0)}, "one integer"),
    "negative": ({"y_train": np.array([0, 1, 2, -1])}, "0 to K-1"),
    "huge": ({"y_train": np.array([0, 1, 2, 2**64 - 1], np.uint64)}, "0 to K-1"),
    "one class": ({"y_train": np.zeros(4, int), "y_test": np.zeros(2, int)}, "two classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_array_is_one_line(load, case):
    changes, expected = BAD[case]
    with pytest.raises(UserError, match=expected) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"none\.npz: no such file"):
        load_dataset(str(tmp_path / "none.npz"), tmp_path)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match="directory"):
        load_dataset(str(tmp_path / "folder.npz"), tmp_path)


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "other.npz"
    np.save(path.with_suffix(".npy"), np.zeros(3))
    for content in (b"", b"x,y\n1,2\n", path.with_suffix(".npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a complete"):
            load_dataset(str(path), tmp_path)


def test_members_that_are_no_arrays(tmp_path):
    path = tmp_path / "text.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", b"text")
    with pytest.raises(UserError, match="N x H x W"):
        load_dataset(str(path), tmp_path)


HEADERS = {
    "too much memory": b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 99999, 9)}",
    "open bracket": b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2, 3",
    "keys of two types": b"{'descr': '|u1', b'fortran_order': False, 'shape': (1, 2, 3)}",
    "no literal": b"{'descr': '|u1', 'fortran_order': False, 'shape': f()}",
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_member_with_a_false_header_is_refused(tmp_path, case):
    header = HEADERS[case] + b"\n"
    path = tmp_path / "header.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key in arrays():
            member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
            archive.writestr(f"{key}.npy", member)
    with pytest.raises(UserError, match=r"damaged|memory"):
        load_dataset(str(path), tmp_path)


def saved(save):
    stream = io.BytesIO()
    save(stream, **arrays())
    return stream.getvalue()


WHOLE = [saved(np.savez), saved(np.savez_compressed)]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(WHOLE)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        load_dataset(str(path), tmp_path)


@pytest.mark.parametrize("whole", WHOLE)
def test_a_truncated_file_is_refused(tmp_path, whole):
    path = tmp_path / "short.npz"
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            load_dataset(str(path), tmp_path)
