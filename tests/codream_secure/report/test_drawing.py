"""Pictures are drawn by the project's settings; one that fails does not end a run."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import codream_secure
from codream_secure.errors import WriteError
from codream_secure.report.drawing import own_settings
from codream_secure.report.pictures import draw_labels, draw_or_warn


@pytest.mark.parametrize(
    "theirs", [{"text.usetex": True}, {"savefig.dpi": 3}, {"axes.formatter.use_locale": True}]
)
def test_settings_of_the_user_do_not_count(theirs, tmp_path, write_run, run):
    counts = np.array([[3, 0], [5, 6]])
    with own_settings():
        draw_labels(counts, tmp_path / "plain.png")
    with mpl.rc_context(theirs):
        with own_settings():
            draw_labels(counts, tmp_path / "other.png")
        assert run("report", write_run("one"))[0] == 0
        assert all(mpl.rcParams[name] == value for name, value in theirs.items())
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_a_picture_that_fails_is_a_warning_but_a_full_disk_is_told(tmp_path):
    def broken(_path):
        raise ValueError("no font")

    def full(_path):
        raise WriteError("full")

    with pytest.warns(UserWarning, match="x.png was not drawn: no font"):
        draw_or_warn(broken, tmp_path / "x.png")
    with pytest.raises(WriteError):
        draw_or_warn(full, tmp_path / "x.png")


def test_pyplot_is_never_imported():
    for path in Path(codream_secure.__file__).parent.rglob("*.py"):
        assert not re.search(r"import.*pyplot", path.read_text()), path


def test_a_backend_that_matplotlib_does_not_know(write_run, tmp_path):
    write_run("one")
    code = (
        "import os, sys; os.environ['MPLBACKEND'] = 'nonsense'; "
        "sys.argv = ['codream-secure', 'report', 'one']; "
        "from codream_secure.cli.main import entry_point; entry_point()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("simulate", "--clients", "3", "--rounds", "1", "--out", "it"),
        pytest.param(("compare", "--out", "it"), marks=pytest.mark.slow),
        ("compare", "--sizes", "--out", "it"),
        pytest.param(("report", "one"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_matplotlibrc_that_is_no_text_is_told_before_the_work(command, write_run, tmp_path):
    write_run("one")
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: \xff\xfe\n")
    words = [sys.executable, "-m", "codream_secure", *command]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    told = done.stderr.splitlines()[-1]
    assert told == "error: the matplotlibrc here is no text or unreadable; remove it"
    assert not (tmp_path / "it").exists()
