"""Suspicious data is spoken of, the same for files, folders and data in memory."""

import numpy as np
import pytest

import codream_secure as cs
from codream_secure.data.doubts import doubts

RNG = np.random.default_rng(0)


def part(labels, *, channels=1):
    return RNG.integers(0, 256, (len(labels), 6, 6, channels)).astype(np.uint8), np.array(labels)


@pytest.mark.parametrize(
    ("train", "test", "channels", "told"),
    [
        ([0, 1, 2] * 4, [0, 1, 2], 1, []),
        ([0, 1] * 4, [0, 1], 3, []),
        ([1, 2, 3] * 4, [1, 2, 3], 1, ["no example has label 0"]),
        ([1, 2] * 4, [0, 1, 2], 1, ["no training example of class ant"]),
        ([0, 1] * 4, [0, 1, 2], 1, ["no training example of class cow"]),
        ([0] * 8, [0, 1, 2], 1, ["no training example of class bee, cow"]),
        ([0, 1] * 4, [0, 1], 2, ["2 channels"]),
    ],
)
def test_doubts(train, test, channels, told):
    names = ("ant", "bee", "cow", "dog")[: max(train + test) + 1]
    data = cs.Data.from_arrays(
        part(train, channels=channels),
        part(test, channels=channels),
        class_names=names,
        channels="last",
    )
    found = doubts(data.dataset)
    assert len(found) == len(told)
    assert all(words in sentence for words, sentence in zip(told, found, strict=True))


def test_the_command_line_tells_them_in_one_line_and_goes_on(run, tmp_path):
    (x, y), (x_test, y_test) = part([1, 2] * 12), part([1, 2] * 3)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    few = ["--clients", "3", "--rounds", "1", "--dreams", "3", "--dream-steps", "1"]
    few += ["--models", "linear", "--kd-epochs", "1", "--warmup-epochs", "1"]
    with pytest.warns(UserWarning, match="mine.npz: no example has label 0; labels count from 0"):
        code, _, _ = run("simulate", "--dataset", "mine.npz", *few)
    assert code == 0
