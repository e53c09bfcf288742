"""`codream-secure protocol parameters`: what it prints, and one line for bad input."""

import json
import re
import sys

import pytest

from codream_secure.cli.main import entry_point

ASK = ["--clients", "1000", "--corrupt", "0.1", "--dropouts", "0.1"]


@pytest.fixture
def run(capsys, monkeypatch):
    """Return a function that runs the subcommand and gives (exit code, stdout, stderr)."""

    def call(*arguments):
        command = ["codream-secure", "protocol", "parameters", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exit_:
            entry_point()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return call


def test_prints_degree_threshold_probabilities_and_what_they_are_for(run):
    code, out, err = run(*ASK)
    assert (code, err) == (0, "")
    assert "k = 52 neighbours, t = 28 shares" in out
    assert out.count("<= 2^-") == 3
    assert "simulate --graph ring" in out


def test_json_holds_the_same_figures(run):
    code, out, err = run(*ASK, "--threat-model", "equivocating", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["k"], found["t"]) == (114, 78)
    assert found["clients"] == 1000
    assert found["threat_model"] == "equivocating"
    chances = found["failure_probabilities"]
    assert max(chances["exposed"], chances["split"]) <= 2**-40
    assert 0 < chances["stuck"] <= 2**-30
    assert found["graph"] == "ring"


def test_sigma_eta_and_steps_count(run):
    values = ["--sigma", "64", "--eta", "40", "--json"]
    found = json.loads(run(*ASK, *values)[1])
    assert (found["k"], found["t"]) == (70, 39)
    assert json.loads(run(*ASK, *values, "--steps", "64")[1])["k"] > 70


def test_a_malicious_server_takes_the_graph_that_clients_choose(run):
    asked = ["--clients", "1000", "--threat-model", "malicious"]
    assert "k = 114 clients that each chooses, t = 89 of them" in run(*asked)[1]
    found = json.loads(run(*asked, "--json")[1])
    assert (found["k"], found["t"], found["graph"]) == (114, 89, "chosen")
    assert (found["corrupt"], found["dropouts"]) == (50, 50)
    chances = found["failure_probabilities"]
    assert chances["split"] <= 2**-40
    assert max(chances["stuck"], chances["flooded"]) <= 2**-30


def test_impossible_failures_are_zero(run):
    code, out, _ = run("--clients", "10", "--corrupt", "0", "--dropouts", "0.1")
    assert code == 0
    assert re.search("its input +0\n", out)
    assert "complete graph costs little" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "2"], "clients: 2 is outside 3..16384"),
        (["--corrupt", "1.5"], "corrupt: fraction 1.5 is outside"),
        (["--dropouts", "nan"], "dropouts: fraction nan is outside"),
        (["--sigma", "0"], "sigma: 0 is outside"),
        (["--steps", "0"], "at least one"),
        (["--corrupt", "0.4", "--dropouts", "0.4", "--threat-model", "equivocating"], "no ring"),
        (["--threat-model", "malicious", "--corrupt", "0.34"], "a third corrupt has no sparse"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, arguments, message):
    code, out, err = run(*ASK, *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_missing_and_malformed_options_are_code_2(run):
    for arguments in ([], ["--clients", "many", *ASK[2:]]):
        code, out, _ = run(*arguments)
        assert (code, out) == (2, "")
