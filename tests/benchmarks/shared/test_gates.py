"""What a gate of the benchmarks says, and the exit code that follows."""

import argparse
import json

import pytest

from benchmarks.shared.gates import Comparison, Gate, Report
from benchmarks.shared.script import finish, run_parts

ROWS = [{"case": "one", "ms": 1.0}]


@pytest.mark.parametrize(
    ("gate", "holds"),
    [
        (Gate.at_least("speed", 3.0, 3), True),
        (Gate.at_least("speed", 2.99999, 3), False),
        (Gate.at_most("share", 0.42, 0.42), True),
        (Gate.at_most("share", 0.42001, 0.42), False),
        (Gate.below("expansion", 1.72999, 1.73), True),
        (Gate.below("expansion", 1.73, 1.73), False),
    ],
)
def test_a_gate_is_decided_before_its_figure_is_rounded(gate, holds):
    assert gate.holds is holds


def test_a_comparison_shows_both_figures_and_their_ratio():
    row = Comparison.at_most("upload", 0.4, 0.42).of(2.0, 5.0, "this run").row()
    assert (row["ours"], row["theirs"], row["ratio"]) == (2.0, 5.0, 0.4)
    assert (row["target"], row["holds"], row["source"]) == ("<= 0.42", True, "this run")


def test_an_absolute_bar_has_no_ratio():
    row = Comparison.at_most("client ms", 25.0, 40).of(25.0).row()
    assert (row["ours"], row["theirs"], row["ratio"]) == (25.0, None, None)


def test_the_gates_hold_if_all_of_them_do(capsys):
    assert Report("title", ROWS, [Gate.at_least("speed", 3.0, 3)]).show(as_json=True)
    assert json.loads(capsys.readouterr().out)["gates"][0]["holds"]


@pytest.mark.parametrize("as_json", [True, False])
def test_one_gate_that_does_not_hold_fails_the_script(capsys, as_json):
    gates = [Gate.at_least("speed", 3.0, 3), Gate.at_least("speed", 2.0, 3)]
    options = argparse.Namespace(json=as_json)
    with pytest.raises(SystemExit) as stopped:
        finish(Report("title", ROWS, gates), options)
    assert stopped.value.code == 1
    assert "speed" in capsys.readouterr().out


def test_records_hold_the_command_in_both_forms(tmp_path):
    gates = [Comparison.at_most("upload", 0.4, 0.42).of(2.0, 5.0)]
    Report("title", ROWS, gates).show(as_json=False, save=tmp_path / "record")
    command = json.loads((tmp_path / "record.json").read_text())["command"]
    assert (tmp_path / "record.txt").read_text().startswith(f"$ {command}\n")


def test_one_part_that_misses_a_gate_fails_the_script_after_all_parts(capsys):
    def run(name, grid):
        assert grid.folder is None
        return Report(name, ROWS, [Gate.at_least("speed", 3.0, 3 if name == "b" else 4)])

    options = argparse.Namespace(json=False, keep=None, record=False)
    with pytest.raises(SystemExit) as stopped:
        run_parts(["a", "b"], run, options)
    assert stopped.value.code == 1
    assert capsys.readouterr().out.count("speed") == 2


def test_parts_without_data_are_left_out_and_nothing_else_is_an_error():
    options = argparse.Namespace(json=False, keep=None, record=False, data_folder="data")
    with pytest.raises(SystemExit, match="--data-folder"):
        run_parts(["a"], lambda name, grid: None, options)
