"""What commands say about the data that their options name."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

RNG = np.random.default_rng(0)
SMALL = [
    *("--dataset", ".", "--image-size", "8", "--clients", "3", "--rounds", "1", "--dreams", "3"),
    *("--dream-steps", "1", "--kd-epochs", "1", "--warmup-epochs", "1", "--models", "linear"),
]


@pytest.fixture
def pictures(tmp_path):
    for name in ("cat", "dog"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(8):
            pixels = RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def test_the_folder_of_the_data_may_be_where_results_go(run, pictures):
    compared = ["compare", "--methods", "fedavg,independent", "--trials", "1", "--fed-epochs", "1"]
    for command in (["simulate"], ["simulate", "--out", "mine/1"], compared, ["simulate"]):
        code, _, err = run(*command, *SMALL, "--seed" if command[0] == "simulate" else "--seeds", 0)
        assert code == 0, err
        assert err.splitlines()[0] == "2 classes in .: cat, dog"
    students = [*pictures.glob("runs/*/models/server/weights.*")]
    students += pictures.glob("mine/*/models/server/weights.*")
    assert len(students) == 3
    for path in students:
        assert {weight.shape[0] for weight in load_file(path).values()} == {2}
    assert run("simulate", *SMALL, "--quiet") == (0, "", "")


def test_many_classes_are_counted(run, tmp_path):
    for i in range(23):
        (tmp_path / f"{i:02}").mkdir()
        for j in range(2):
            Image.new("L", (8, 8), i).save(tmp_path / f"{i:02}/{j}.png")
    code, _, err = run("simulate", *SMALL)
    assert code == 0
    names = ", ".join(f"{i:02}" for i in range(20))
    assert err.splitlines()[0] == f"23 classes in .: {names} and 3 more"
