"""However a command ends, its folder can be read, and it goes on or says why not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[2] / "helpers"
COMMANDS = ("simulate", "private", "resume", "compare", "report", "audit")


def run_helper(name, *arguments, seconds):
    """Run a helper that forks; it must not be this process, which has threads."""
    command = [sys.executable, str(HELPERS / name), *arguments]
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    found = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_a_sample_of_ends_leaves_nothing_lost():
    told = run_helper("crashes.py", "simulate", "kill,full", "1000", "40", seconds=300)
    assert "0 findings" in told
    assert int(told.split()[0]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_call_of_the_file_layer_may_be_the_last(command):
    assert "0 findings" in run_helper("crashes.py", command, "all", "1", "0", seconds=7200)


def test_properties_of_the_command_line():
    run_helper("command_properties.py", "2", seconds=300)


@pytest.mark.slow
def test_properties_of_the_command_line_at_length():
    run_helper("command_properties.py", "600", "1", seconds=7200)


@pytest.mark.parametrize(
    "long", ["--warmup-epochs=100000", pytest.param("--dream-steps=100000", marks=pytest.mark.slow)]
)
def test_before_the_first_round_a_signal_is_one_sentence(tmp_path, long):
    command = [sys.executable, "-m", "codream_secure", "simulate", "--clients", "3", "--quiet"]
    command += ["--models", "linear", "--warmup-epochs", "1", long, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while time.monotonic() < until and not (tmp_path / "run/config.toml").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "interrupted before the first round was finished: there is no result\n"
    assert not (tmp_path / "run/summary.json").exists()
