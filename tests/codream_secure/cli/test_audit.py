"""`codream-secure audit protocol`: a line per property, and its exit codes."""

import json
import subprocess
import sys

import pytest

from codream_secure.cli.main import entry_point
from protocols.audit import Outcome, PropertyFailed
from protocols.audit import run as audits


@pytest.fixture
def run(capsys, monkeypatch):
    """Return a function that runs the subcommand and gives (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["codream-secure", "audit", "protocol", *arguments])
        with pytest.raises(SystemExit) as exit_:
            entry_point()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return call


def holds(examples, subject):
    """Always holds."""
    return Outcome(examples, 3 * examples)


def fails(examples, subject):
    """Never holds."""
    error = PropertyFailed("the sum names [10], not [10, 13]")
    error.add_note("Falsifying example: n = 4")
    raise error


@pytest.fixture
def two_properties(monkeypatch):
    monkeypatch.setattr(audits, "PROPERTIES", (holds, fails))


def test_every_property_has_a_line_with_counts(run):
    code, out, err = run("--examples", "4")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == len(audits.PROPERTIES) + 1
    for line, check in zip(lines, audits.PROPERTIES, strict=False):
        assert line.split()[:2] == ["ok", check.__name__]
        assert "examples" in line
        assert "checks" in line
    assert f"{len(audits.PROPERTIES)} of {len(audits.PROPERTIES)} properties hold" in lines[-1]


@pytest.mark.usefixtures("two_properties")
def test_a_failed_property_is_named_with_its_example_and_the_exit_code_is_1(run):
    code, out, _ = run("--examples", "5")
    assert code == 1
    held, failed, last = out.splitlines()
    assert held.split() == ["ok", "holds", "5", "examples", "15", "checks"]
    assert failed.startswith("FAILED  fails")
    assert "the sum names [10], not [10, 13]" in failed
    assert "n = 4" in failed
    assert last.startswith("1 of 2 properties hold")


@pytest.mark.usefixtures("two_properties")
def test_json_holds_the_same(run):
    code, out, _ = run("--examples", "5", "--json")
    report = json.loads(out)
    assert (code, report["failed"]) == (1, ["fails"])
    held, failed = report["properties"]
    assert held["outcome"] == {"examples": 5, "checks": 15}
    assert held["claim"] == "Always holds."
    assert failed["outcome"] is None
    assert "n = 4" in failed["failure"]


def test_without_hypothesis_one_line_says_how_to_install_it():
    code = """
import importlib.util, sys
sys.modules["hypothesis"] = None
from codream_secure.cli.main import entry_point
sys.argv = ["codream-secure", "audit", "protocol"]
entry_point()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: the audit needs Hypothesis: pip install 'codream-secure[audit]'\n"
    )


def test_bad_input_is_one_line(run):
    code, _, err = run("--examples", "0")
    assert code == 2
    assert "--examples" in err
