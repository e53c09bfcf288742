"""Folders of images."""

import os

import numpy as np
import pytest
from PIL import Image

from codream_secure.data import InputSpec, Scaling, load_dataset
from codream_secure.data.folders import class_names
from codream_secure.errors import UserError

RNG = np.random.default_rng(0)


def write(path, size=(6, 5), mode="RGB", value=None):
    """Write an image of so many columns and rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = () if mode in {"L", "I;16"} else (len(mode),)
    dtype = np.uint16 if mode == "I;16" else np.uint8
    pixels = RNG.integers(0, 256, (size[1], size[0], *channels)).astype(dtype)
    if value is not None:
        pixels[:] = value
    Image.fromarray(pixels).save(path)
    return pixels


def load(root, **options):
    return load_dataset(str(root), root / "unused", **options)


@pytest.fixture
def photos(tmp_path):
    """Twelve cats and seven dogs, in one level."""
    root = tmp_path / "photos"
    for name, count in (("cat", 12), ("dog", 7)):
        for i in range(count):
            write(root / name / f"{i}.png", value=10 * i + (name == "dog"))
    return root


def values(images):
    return sorted(np.rint(255 * images[:, 0, 0, 0]).astype(int).tolist())


def test_the_user_s_split_is_kept(tmp_path):
    root = tmp_path / "photos"
    cat = write(root / "train/cat/1.png")
    dog = write(root / "train/dog/2.bmp")
    bird = write(root / "train/bird/below/3.png")
    other = write(root / "test/dog/4.png")
    (root / "train/notes.txt").write_text("not an image")
    (root / "train/.cache").mkdir()
    write(root / "train/dog/.thumbnails/5.png")
    (root / "train/dog/readme.md").touch()
    dataset = load(root)
    assert dataset.name == "photos"
    assert dataset.spec == InputSpec(3, 5, 6, 3)
    assert dataset.scaling == Scaling((0.5,) * 3, (0.5,) * 3)
    assert dataset.y_train.tolist() == [0, 1, 2]
    assert dataset.y_test.tolist() == [2]
    for image, expected in zip(dataset.x_train, (bird, cat, dog), strict=True):
        np.testing.assert_allclose(image * 255, expected.transpose(2, 0, 1), atol=1e-4)
    np.testing.assert_allclose(dataset.x_test[0] * 255, other.transpose(2, 0, 1), atol=1e-4)


def test_one_level_is_split_by_the_names_of_the_files(photos):
    first, again = load(photos), load(photos)
    assert np.bincount(first.y_train).tolist() == [10, 6]
    assert np.bincount(first.y_test).tolist() == [2, 1]
    assert np.array_equal(first.x_test, again.x_test)
    everything = values(np.concatenate([first.x_train, first.x_test]))
    assert everything == sorted([10 * i for i in range(12)] + [10 * i + 1 for i in range(7)])
    # Which ones may never change between versions.
    assert values(first.x_test) == [51, 80, 100]


def test_a_class_may_be_called_train(photos):
    (photos / "cat").rename(photos / "train")
    assert load(photos).spec.classes == 2


def test_grey_images_have_one_channel_and_three_where_one_is_in_colour(tmp_path):
    root = tmp_path / "photos"
    grey = write(root / "train/a/1.png", mode="L")
    write(root / "train/b/2.png", mode="L")
    write(root / "test/b/3.png", mode="L")
    dataset = load(root)
    assert dataset.spec == InputSpec(1, 5, 6, 2)
    np.testing.assert_allclose(dataset.x_train[0, 0] * 255, grey, atol=1e-4)
    write(root / "test/b/4.png", mode="RGBA")
    dataset = load(root)
    assert dataset.spec.channels == 3
    for channel in dataset.x_train[0]:
        np.testing.assert_allclose(channel * 255, grey, atol=1e-4)


def test_images_are_resized_where_that_is_asked_for(photos):
    write(photos / "cat/large.jpg", size=(40, 30))
    dataset = load(photos, image_size=8)
    assert dataset.spec == InputSpec(3, 8, 8, 2)
    assert 110 in values(np.concatenate([dataset.x_train, dataset.x_test]))


def other_size(root):
    write(root / "cat/large.png", size=(40, 30))


def no_image(root):
    (root / "dog/5.png").write_bytes(b"text")


def truncated(root):
    whole = (root / "dog/5.png").read_bytes()
    (root / "dog/5.png").write_bytes(whole[: len(whole) // 2])


def deep(root):
    write(root / "dog/deep.png", mode="I;16")


def one_class(root):
    (root / "cat").rename(root / "dog/cat")


def empty_class(root):
    (root / "empty").mkdir()


def single(root):
    write(root / "bird/1.png")


def no_test(root):
    write(root / "train/cat/1.png")


def empty_test(root):
    no_test(root)
    write(root / "train/dog/1.png")
    (root / "test").mkdir()


def new_class_in_test(root):
    no_test(root)
    write(root / "train/dog/1.png")
    write(root / "test/bird/1.png")


BAD = [
    (other_size, "cat/large.png is 40 x 30 pixels and cat/0.png 6 x 5; give --image-size"),
    (no_image, "5.png: it is not a readable image"),
    (truncated, "5.png: it is not a readable image"),
    (deep, "deep.png: its pixels are of type I;16; store 8-bit"),
    (one_class, "it needs a folder for every class and at least two classes, but has 1"),
    (empty_class, "empty: it has no images"),
    (single, "bird: it has one image"),
    (no_test, "it has train/ and no test/"),
    (empty_test, "test: it has no images"),
    (new_class_in_test, "class bird is in test/ but not in train/"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_wrong_is_one_line(photos, spoil, says):
    spoil(photos)
    with pytest.raises(UserError) as caught:
        load(photos)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_named_like_a_dataset_needs_a_path(photos, monkeypatch):
    photos.rename(photos.parent / "digits")
    monkeypatch.chdir(photos.parent)
    assert load_dataset("digits", photos).spec.classes == 10
    assert load_dataset("./digits", photos).spec.classes == 2


def own_folder(path, mark="metrics.jsonl"):
    """Write what a run, a comparison or a table of sizes leaves, with a picture."""
    write(path / "dreams.png", size=(90, 80))
    (path / mark).touch()


def test_folders_that_this_program_wrote_are_no_classes(photos):
    before = load(photos)
    own_folder(photos / "runs/20261129-101010-codream-photos")
    own_folder(photos / "comparisons/1/cells/fedavg-seed0")
    own_folder(photos / "results/deep/er")
    own_folder(photos / "mine")
    own_folder(photos / "compared", "compare.json")
    own_folder(photos / "table", "sizes.json")
    own_folder(photos / "cat/tried")
    (photos / "next").mkdir()
    (photos / "next/.lock").touch()
    after = load(photos)
    assert after.class_names == class_names(photos) == ("cat", "dog")
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(before, name), getattr(after, name))


def test_folders_that_this_program_wrote_are_no_split(photos, tmp_path):
    own_folder(photos / "train/old")
    write(photos / "train/1.png")
    write(photos / "train/2.png")
    assert class_names(photos) == ("cat", "dog", "train")
    split = tmp_path / "split"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            write(split / part / name / "1.png")
        own_folder(split / part / "runs/old")
    assert load(split).class_names == ("cat", "dog")


def test_a_class_may_be_called_runs(photos):
    write(photos / "runs/1.png")
    write(photos / "runs/2.png")
    own_folder(photos / "runs/20261129-101010-codream-photos")
    assert load(photos).class_names == ("cat", "dog", "runs")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_cannot_be_read_is_not_passed_over(photos):
    (photos / "cat/more").mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be read"):
        load(photos)


def test_images_are_turned_as_their_exif_orientation_says(tmp_path):
    for name in ("cat", "dog"):
        for number in range(2):
            pixels = write(tmp_path / name / f"{number}.png", size=(5, 6))
            turned = Image.fromarray(np.rot90(pixels))
            tags = Image.Exif()
            tags[0x0112] = 6  # a camera that was held upright
            turned.save(tmp_path / name / f"{number}.png", exif=tags)
    dataset = load(tmp_path)
    assert dataset.spec == InputSpec(3, 6, 5, 2)
    found = np.concatenate([dataset.x_train, dataset.x_test]) * 255
    assert any(np.allclose(image, pixels.transpose(2, 0, 1), atol=1e-4) for image in found)
