"""Whatever happens to what a command prints: files are whole, and the exit code is the run's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from codream_secure.cli import streams
from codream_secure.cli.streams import Guarded

FULL = Path("/dev/full")
RUN = ["simulate", "--clients=3", "--samples-per-client=20", "--rounds=1", "--dreams=8"]
RUN += ["--dream-steps=2", "--kd-epochs=1", "--warmup-epochs=1", "--models=linear", "--out"]


def command(words, where, **options):
    """Run a command in a process of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | options.pop("env", {})
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, "-m", "codream_secure", *words],
        cwd=where,
        env=env,
        check=False,
        timeout=120,
        **given,
    )


def test_a_warning_of_the_package_is_one_line():
    told = streams._one_line(UserWarning("too large"), UserWarning, streams.__file__, 3)
    assert told == "warning: too large\n"
    of_others = streams._one_line(UserWarning("odd"), UserWarning, "/lib/other.py", 3)
    assert "other.py:3: UserWarning: odd" in of_others


@pytest.fixture
def whole(write_run, tmp_path):
    """Return a folder with a finished run."""
    write_run("runs/one")
    return tmp_path


def test_a_terminal_without_greek(whole):
    done = command(["runs"], whole, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" in done.stdout.splitlines()[1]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii:strict"])
def test_all_commands_on_terminals_without_greek(whole, encoding):
    for words in (["runs"], ["compare", "--sizes"], ["report", "runs/one"], [*RUN, "o"]):
        done = command(words, whole, env={"PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stderr.count(b"Error")) == (0, 0)
        assert done.stdout


def test_what_cannot_be_written_is_dropped_and_told_once(tmp_path):
    told = []
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        stream = Guarded(pipe, told.append)
        for part in (stream, stream.buffer):
            part.write("x" if part is stream else b"x")
            part.flush()
    assert told == []
    if FULL.exists():
        with FULL.open("w") as disk:
            stream = Guarded(disk, told.append)
            for _ in range(3):
                assert stream.write("x" * 20_000) == 20_000
                stream.flush()
        assert told == ["No space left on device"]


def test_a_reader_that_has_left_is_no_error(whole):
    read, write = os.pipe()
    os.close(read)
    done = command(["runs"], whole, stdout=write)
    assert (done.returncode, done.stderr) == (0, b"")
    os.close(write)


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="Linux only")
def test_output_to_a_full_disk_is_a_warning(tmp_path):
    with FULL.open("wb") as full:
        done = command([*RUN, "o", "--json"], tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stderr.count(b"warning: standard output cannot be written") == 1
    assert (tmp_path / "o/report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("closed", [1, 2])
def test_streams_that_were_closed_before(tmp_path, closed):
    shell = f'exec "$0" -m codream_secure "$@" {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, *RUN, "o"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0
    assert (tmp_path / "o/report.html").is_file()
