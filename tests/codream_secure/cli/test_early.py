"""What is wrong with a run's settings is told before anything slow is loaded."""

import json
import subprocess
import sys

import pytest

# One process for all: it forks for each case, so that what one loads stays with it.
_PROGRAM = """
import json, os, sys
from codream_secure.cli.main import cli
from codream_secure.errors import UserError
slow = {"torch", "sklearn", "matplotlib", "scipy", "PIL", "flwr"}
for words in json.loads(sys.argv[1]):
    if not os.fork():
        try:
            cli.main(words, standalone_mode=False)
        except UserError as error:
            print(json.dumps([str(error), sorted(slow & set(sys.modules))]), flush=True)
        finally:
            os._exit(0)
    os.wait()
"""


_SIMULATE = [
    (["simulate", *words], told)
    for words, told in [
        (["--models", "restnet8"], "unknown model 'restnet8'"),
        (["--dataset", "digit"], "unknown dataset 'digit'"),
        (["--dataset", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--clients", "2"], "at least 3 clients"),
        (["--out", "."], "is not empty"),
        (["--bits", "99"], "--bits must be"),
    ]
]
CASES = [
    *_SIMULATE,
    (["compare", "--methods", "fedagv"], "unknown method 'fedagv'"),
    (["compare", "--models", "restnet8"], "unknown model 'restnet8'"),
    (["compare", "--dataset", "digit"], "unknown dataset 'digit'"),
    (["compare", "--seeds", "1,x"], "--seeds must be whole numbers"),
    (["compare", "--methods", "codream,fedavg-secure", "--clients", "2"], "at least 3 clients"),
    (["audit", "privacy", "--dataset", "digit"], "unknown dataset 'digit'"),
    (["audit", "privacy", "nowhere"], "is not the folder of a run"),
    (["report", "nowhere"], "there is no such folder"),
    (["predict", "nowhere", "x.png"], "no model"),
    (["deploy", "local", "--models", "restnet8"], "unknown model 'restnet8'"),
    (["deploy", "local", "--set", "dataset=digit"], "unknown dataset 'digit'"),
    (["deploy", "local", "--clients", "3", "--set", "dp_eps=-1"], "--dp-eps must be"),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Return what each command line is told, with the slow libraries that it has loaded."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "file").touch()
    lines = [words for words, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(lines)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [path.name for path in folder.iterdir()] == ["file"]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(lines), done.stderr
    return dict(zip(map(str, lines), found, strict=True))


@pytest.mark.parametrize(("words", "told"), CASES, ids=str)
def test_a_refusal_loads_no_slow_library(words, told, refusals):
    refusal, loaded = refusals[str(words)]
    assert told in refusal
    assert loaded == []
