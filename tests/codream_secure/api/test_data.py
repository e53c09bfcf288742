"""Data in memory is checked like files, whatever it comes as."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import codream_secure as cs
from codream_secure.data.npz import read_npz

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 8, 6), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def of(images, labels=LABELS, **options):
    return cs.Data.from_arrays((images, labels), (images[:6], labels[:6]), **options).dataset


def test_arrays_give_what_the_same_file_gives(tmp_path):
    path = tmp_path / "some.npz"
    parts = {"x_train": COLOUR, "y_train": LABELS, "x_test": COLOUR[:6], "y_test": LABELS[:6]}
    np.savez(path, **parts)
    file, memory = read_npz(path), of(COLOUR)
    assert np.array_equal(memory.x_train, file.x_train)
    assert np.array_equal(memory.y_test, file.y_test)
    assert memory.spec.classes == 3


@pytest.mark.parametrize(
    "images",
    [
        COLOUR,
        COLOUR.transpose(0, 3, 1, 2),
        torch.from_numpy(COLOUR).permute(0, 3, 1, 2),
        (COLOUR / np.float32(255)).transpose(0, 3, 1, 2),
    ],
)
def test_channels_may_stand_first_or_last(images):
    found = of(images)
    assert found.x_train.shape == (12, 3, 8, 6)
    assert found.x_train[2, 1, 4, 5] == pytest.approx(COLOUR[2, 4, 5, 1] / 255)


def test_a_shape_that_fits_both_ways_is_asked_for():
    images = RNG.integers(0, 256, (12, 3, 5, 4), dtype=np.uint8)
    with pytest.raises(cs.UserError, match="first or last"):
        of(images)
    assert of(images, channels="first").spec.channels == 3
    assert of(images, channels="last").spec.channels == 4


class Pictures:
    """A dataset as torchvision's: PIL images, labels, names of classes."""

    classes = ("cat", "dog", "owl")

    def __getitem__(self, index):
        return Image.fromarray(COLOUR[index]), int(LABELS[index])

    def __len__(self):
        return 12


def test_torch_datasets_of_tensors_and_of_pictures():
    tensors = TensorDataset(torch.from_numpy(GREY)[:, None], torch.from_numpy(LABELS))
    assert np.array_equal(cs.Data.from_torch(tensors, tensors).dataset.x_train, of(GREY).x_train)
    found = cs.Data.from_torch(Pictures(), Pictures()).dataset
    assert np.array_equal(found.x_train, of(COLOUR).x_train)
    assert found.class_names == ("cat", "dog", "owl")


def test_each_client_has_its_own_part():
    parts = [(GREY[:4], LABELS[:4]), (GREY[4:12], LABELS[4:12])]
    found = cs.Data.per_client(parts, test=(GREY, LABELS)).dataset
    assert [rows.tolist() for rows in found.client_rows] == [[0, 1, 2, 3], list(range(4, 12))]
    assert np.array_equal(found.x_train, of(GREY).x_train)


def test_the_test_part_may_have_its_channels_elsewhere():
    parts = [(COLOUR, LABELS)]
    found = cs.Data.per_client(parts, test=(COLOUR.transpose(0, 3, 1, 2), LABELS)).dataset
    assert np.array_equal(found.x_test, found.x_train)


def broken_item():
    class Broken(Pictures):
        def __getitem__(self, index):
            return Image.fromarray(COLOUR[index])

    return cs.Data.from_torch(Broken(), Pictures())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: of(GREY.astype(np.int64)), "store pixels as uint8"),
        (lambda: of(GREY / 3.0), "bring them to"),
        (lambda: of(GREY, LABELS[:5]), "12 images and y_train 5 labels"),
        (lambda: of(GREY, LABELS * 1.0), "one integer per image"),
        (lambda: of(GREY, LABELS - 1), "number the K classes"),
        (lambda: of(GREY, np.zeros(12, int)), "two classes"),
        (lambda: of(GREY, class_names=("a", "b")), "labels go from 0 to 2"),
        (lambda: of(torch.rand(12, 8, 6, requires_grad=True)), "no array"),
        (lambda: cs.Data.from_arrays(3, (GREY, LABELS)), "pair of arrays or a torch dataset"),
        (lambda: cs.Data.from_arrays((GREY, LABELS, 3), (GREY, LABELS)), "pair of images"),
        (broken_item, "item 0 of x_train is no pair"),
        (lambda: cs.Data.per_client([], test=(GREY, LABELS)), "there is none"),
        (
            lambda: cs.Data.per_client([(GREY[:3], LABELS[:3])], test=(GREY, LABELS)),
            "client 0 has 3 examples; a client needs 4",
        ),
        (
            lambda: cs.Data.per_client([(GREY, LABELS), (COLOUR, LABELS)], test=(GREY, LABELS)),
            "differ in shape or type",
        ),
        (lambda: cs.Data.load("nothing"), "unknown dataset"),
    ],
)
def test_what_is_wrong_is_one_line(make, words):
    with pytest.raises(cs.UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
