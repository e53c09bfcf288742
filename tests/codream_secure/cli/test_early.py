"""What is wrong with a run's settings is told before anything slow is loaded."""

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from codream_secure.cli.main import cli
from codream_secure.errors import UserError
try:
    cli.main(sys.argv[1:], standalone_mode=False)
except UserError as error:
    print(error)
print(sorted({"torch", "sklearn", "matplotlib", "scipy", "PIL"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--models", "restnet8"], "unknown model 'restnet8'"),
        (["--dataset", "digit"], "unknown dataset 'digit'"),
        (["--dataset", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--clients", "2"], "at least 3 clients"),
        (["--out", "."], "is not empty"),
        (["--bits", "99"], "--bits must be"),
    ],
)
def test_a_refusal_loads_no_slow_library(words, told, tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "simulate", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    refusal, loaded = done.stdout.splitlines()
    assert told in refusal
    assert loaded == "[]"
