"""What tests of the learning side share: tiny federations that run in a second."""

import base64
import os
import sys
from functools import partial

import pytest
import run_folders
from machines import Machines
from matplotlib.figure import Figure

from codream_secure.cli.main import entry_point
from codream_secure.config.settings import Config
from codream_secure.data.datasets import load_dataset
from codream_secure.runtime.parallel import one_core_each

TINY = {
    "clients": 4,
    "rounds": 1,
    "dreams": 6,
    "dream_steps": 2,
    "warmup_epochs": 1,
    "kd_epochs": 1,
    "models": "linear",
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_core_each():
        yield


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """No test cuts the power; what a failing `fsync` does is tested by exchanging it again."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


_DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def _save_nothing(_figure, buffer, *, format, **_):  # noqa: A002 - matplotlib's name
    buffer.write(_DOT if format == "png" else "<svg></svg>")


@pytest.fixture(autouse=True)
def _no_drawing(request, monkeypatch):
    """Most tests of whole runs do not look at pictures, which take longer than a tiny run."""
    drawn = "report" in request.path.parent.parts or request.node.get_closest_marker("pictures")
    if not drawn:
        monkeypatch.setattr(Figure, "savefig", _save_nothing)


@pytest.fixture
def tiny():
    """Return a function that builds the configuration of a tiny run."""

    def build(**options):
        base = {k: v for k, v in TINY.items() if "dp_eps" not in options or k != "warmup_epochs"}
        return Config.from_options({**base, **options})

    return build


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the digits."""
    return load_dataset("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture
def machines(tmp_path, data):
    """Return a function that makes the sites and the server of a run in this process."""
    return lambda **options: Machines(tmp_path / "machines", data, **options)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Return a function that runs the command line and gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["codream-secure", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            entry_point()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def write_run(tmp_path):
    """Return a function that writes a run folder and gives its path."""
    return partial(run_folders.write_run, folder=tmp_path)


@pytest.fixture
def comparison(write_run, tmp_path):
    """A comparison of which one cell failed and one was not finished."""
    folder = tmp_path / "compared"
    for method in ("codream", "fedavg-secure", "moon", "scaffold"):
        write_run(f"{method}-seed0", method=method, folder=folder / "cells")
    for lost in ("moon", "scaffold"):
        (folder / "cells" / f"{lost}-seed0" / "summary.json").unlink()
    (folder / "cells" / "moon-seed0" / "failed.txt").write_text("out of <memory>\n")
    run_folders.write_comparison(folder)
    return folder
