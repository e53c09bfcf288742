"""What does not fit in memory is refused before it is taken; what fits is not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codream_secure.data.folders import read_folder
from codream_secure.data.npz import check_images, read_npz
from codream_secure.errors import UserError
from codream_secure.runtime import memory


def test_there_is_some_memory_and_less_than_the_machine_has():
    total = int(Path("/proc/meminfo").read_text().split()[1]) << 10
    assert 1 << 20 < memory.available() <= total


def test_the_refusal_has_both_figures_and_the_way_out(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 3 << 29)
    memory.require(3 << 29, "this", "take less")
    with pytest.raises(UserError) as caught:
        memory.require((3 << 29) + 1, "this", "take less")
    text = "this would take about 1.5 GB of memory, and 1.5 GB are free; take less"
    assert str(caught.value) == text
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.require(1 << 60, "this", "take less")


@pytest.mark.parametrize(
    ("limit", "used", "cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_has_what_its_limit_leaves(tmp_path, limit, used, cache):
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("900\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\n{cache} 300\n")
    assert memory._left(tmp_path) == 400
    (tmp_path / limit).write_text("max\n")
    with pytest.raises(ValueError, match="max"):
        memory._left(tmp_path)


def test_data_that_do_not_fit_are_refused_by_their_sizes(tmp_path, monkeypatch):
    images = np.zeros((6, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=[0, 1] * 3, x_test=images, y_test=[0] * 6)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(images[0]).save(tmp_path / name / f"{number}.png")
    monkeypatch.setattr(memory, "available", lambda: 300)
    way = "300 bytes are free; use fewer or smaller images"
    for read, size in (
        (lambda: read_npz(tmp_path / "d.npz"), "d.npz: reading it would take about 1.3 kB"),
        (lambda: read_folder(tmp_path, None), "reading its 6 images would take about 768 bytes"),
        (lambda: check_images("x", "y", images), r"\(6, 1, 8, 8\) as floats would take about 1.5"),
    ):
        with pytest.raises(UserError, match=f"{size}.*{way}"):
            read()
