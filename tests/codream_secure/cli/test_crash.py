"""A fault of the program's own: exit code 70, one line, and a file without data."""

import json

import pytest

from codream_secure.cli import crash
from codream_secure.cli.main import cli
from codream_secure.errors import UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.models.trained import load_model

QUOTED = "patient Müller 4711"


@pytest.fixture
def broken(monkeypatch):
    """Make `runs` fail with an error of that kind, which quotes data."""

    def plant(error):
        def fail(*_args, **_options):
            try:
                raise KeyError(QUOTED)
            except KeyError as cause:
                raise error from cause

        monkeypatch.setattr(cli.commands["runs"], "callback", fail)

    return plant


@pytest.mark.parametrize(
    "error", [ValueError(QUOTED), RuntimeError(QUOTED), BrokenPipeError(32, QUOTED)]
)
def test_a_fault_is_one_line_and_a_file_without_data(run, broken, tmp_path, error):
    broken(error)
    code, out, err = run("runs", f"/home/{QUOTED}", "--json")
    assert (code, out, err.count("\n")) == (70, "", 1)
    (written,) = tmp_path.glob("codream-secure-crash-*.txt")
    assert written.name in err
    assert "Traceback" not in err
    text = written.read_text()
    assert "options: runs --json" in text
    assert "KeyError" in text
    assert "codream_secure/cli/main.py:" in text
    for hidden in (QUOTED, "4711", str(tmp_path), "/home"):
        assert hidden not in text + err.replace(str(written), "")
    assert written.stat().st_mode & 0o077 == 0


def test_debug_shows_the_traceback_and_writes_nothing(run, broken, tmp_path):
    broken(ValueError(QUOTED))
    for words in (("--debug", "runs"), ("runs", "--debug")):
        code, _, err = run(*words)
        assert code == 70
        assert QUOTED in err
        assert "Traceback" in err
    assert not list(tmp_path.glob("codream-secure-crash-*"))


def test_a_fault_where_nothing_can_be_written(run, broken, monkeypatch):
    broken(ValueError(QUOTED))

    def full(*_args, **_options):
        raise crash.WriteError("full")

    monkeypatch.setattr(crash, "replace", full)
    code, _, err = run("runs")
    assert code == 70
    assert "--debug" in err


@pytest.mark.parametrize(
    "error",
    [
        UserError("so and so"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12"),
    ],
)
def test_what_is_no_fault_of_the_program_has_another_code(run, broken, tmp_path, error):
    broken(error)
    code, _, err = run("runs")
    assert (code, err.count("\n")) == (2, 1)
    assert not list(tmp_path.glob("codream-secure-crash-*"))


def test_a_site_that_does_not_pass_its_check_has_not_the_code_of_an_audit(run):
    code, out, _ = run("deploy", "check", "--data", "nothing.npz")
    assert code == 2
    assert "WRONG" in out


def test_what_is_no_exception_is_a_fault_too(run, broken):
    broken(BaseException(QUOTED))
    code, _, err = run("runs")
    assert (code, err.count("\n")) == (70, 1)


def test_a_fault_in_a_round_loses_none_of_the_rounds_before(run, tmp_path, monkeypatch):
    whole = Simulation.round

    def fails(simulation, number):
        if number == 2:
            raise IndexError(QUOTED)
        return whole(simulation, number)

    monkeypatch.setattr(Simulation, "round", fails)
    words = ["--clients=3", "--samples-per-client=20", "--rounds=3", "--dreams=4", "--quiet"]
    words += ["--dream-steps=1", "--kd-epochs=1", "--warmup-epochs=1", "--models=linear"]
    code, _, err = run("simulate", *words, "--out", tmp_path / "o")
    assert (code, "IndexError" in err, err.count("\n")) == (70, True, 1)
    assert load_model(tmp_path / "o/models/client-0")
    code, out, _ = run("runs", tmp_path / "o", "--json")
    assert (code, json.loads(out)[0]["rounds_finished"]) == (0, 1)
