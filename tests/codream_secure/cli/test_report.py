"""`codream-secure report` and `codream-secure runs`."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_report_lies_in_its_folder(run, write_run):
    folder = write_run("one")
    code, out, err = run("report", folder)
    assert (code, err) == (0, "")
    assert "The clients of CoDream reach 90.0 %" in out
    assert f"written to {folder / 'report.html'}" in out
    again = f"<pre>codream-secure simulate --config {folder / 'config.toml'}</pre>"
    assert again in (folder / "report.html").read_text("utf-8")


def test_a_report_of_several_lies_here(run, write_run, tmp_path):
    code, out, _ = run("report", write_run("a"), write_run("b", method="fedavg"), "--json")
    assert code == 0
    told = json.loads(out)
    assert told["page"] == "report.html"
    assert (tmp_path / "report.html").exists()
    assert told["question"].startswith("Which method")
    assert told["answer"]
    assert [one["method"] for one in told["runs"]] == ["codream", "fedavg"]


def test_out_names_the_page(run, write_run, tmp_path):
    runs = write_run("a"), write_run("b", method="fedavg")
    assert run("report", *runs, "--out", "my page.html")[0] == 0
    text = (tmp_path / "my page.html").read_text("utf-8")
    assert f"<pre>codream-secure report {runs[0]} {runs[1]} --out &#39;my page.html&#39;" in text


def test_runs_are_listed_with_their_numbers(run, write_run, tmp_path):
    write_run("private", epsilon=7.5, folder=tmp_path / "runs")
    write_run("fedavg-seed0", method="fedavg", folder=tmp_path / "runs" / "compared" / "cells")
    (tmp_path / "runs" / "something else").mkdir()
    code, out, err = run("runs")
    assert (code, err) == (0, "")
    for shown in ("private", "7.5", "compared/cells/fedavg-seed0", "none", "90.0 %", "3/3", "iid"):
        assert shown in out
    code, out, _ = run("runs", "--json")
    rows = {row["folder"]: row for row in json.loads(out)}
    assert rows["runs/private"] == {
        "folder": "runs/private",
        "method": "codream",
        "dataset": "digits",
        "partition": "iid",
        "clients": 2,
        "seed": 0,
        "accuracy": 0.9,
        "accuracy_std": 0.02,
        "bytes_up": 1000,
        "bytes_down": 2000,
        "private": True,
        "epsilon": 7.5,
        "rounds_finished": 3,
        "rounds": 3,
        "seconds": 4.5,
        "iterations": 30.0,
    }
    assert len(rows) == 2


def test_a_folder_without_runs(run, tmp_path):
    assert run("runs", tmp_path) == (0, f"no runs in {tmp_path}\n", "")
    assert run("runs", tmp_path, "--json") == (0, "[]\n", "")


def test_names_in_brackets_are_text(run, write_run, tmp_path):
    write_run("a", method="[red]m[/]", folder=tmp_path / "runs")
    assert "[red]m[/]" in run("runs")[1]


def test_a_damaged_run_does_not_hide_the_others(run, write_run, tmp_path):
    write_run("good", folder=tmp_path / "runs")
    (write_run("torn", folder=tmp_path / "runs") / "summary.json").write_text("{")
    code, out, err = run("runs")
    assert code == 2
    assert "good" in out
    assert err.startswith("error: runs/torn: summary.json is damaged")
    assert err.count("\n") == 1


def locked_away(monkeypatch, *folders):
    """Let nothing below these folders be looked at; root may look at all, so no `chmod`."""
    locked = [str(folder) for folder in folders]

    def guarded(call):
        def look(path, *arguments, **options):
            name = str(Path.cwd() / path) if isinstance(path, str | os.PathLike) else ""
            lists = call is os_listdir
            for folder in locked:
                if name.startswith(folder + "/") or (lists and name == folder):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
            return call(path, *arguments, **options)

        return look

    os_listdir = os.listdir
    for name in ("stat", "listdir", "scandir", "open"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


def test_a_run_that_cannot_be_read_has_its_row(run, write_run, monkeypatch, tmp_path):
    write_run("mine", folder=tmp_path / "runs")
    locked_away(monkeypatch, write_run("theirs", folder=tmp_path / "runs"))
    code, out, err = run("runs")
    assert code == 2
    (row,) = (line for line in out.splitlines() if "theirs" in line)
    assert "cannot be read" in row
    assert "mine" in out
    assert err == "error: runs/theirs/config.toml: cannot be read: Permission denied\n"
    code, out, _ = run("runs", "--json")
    assert [one["folder"] for one in json.loads(out)] == ["runs/mine"]
    for command in (["report"], ["simulate", "--resume"], ["simulate", "--quiet", "--dataset"]):
        code, out, err = run(*command, "runs/theirs/x")
        assert (code, out) == (2, "")
        assert re.search(r"error: runs/theirs/x[/\w]*: cannot be read: Permission denied\n", err)


def test_a_cell_that_cannot_be_read_has_its_row(run, comparison, monkeypatch):
    locked_away(monkeypatch, comparison / "cells/fedavg-secure-seed0")
    code, out, _ = run("runs", comparison.parent)
    assert code == 2
    assert "compared/cells/codream-seed0" in out
    (row,) = (line for line in out.splitlines() if "fedavg-secure-seed0" in line)
    assert "cannot be read" in row
    assert run("report", comparison)[0] == 0
    assert "fedavg-secure-seed0/config.toml: cannot be read" in (
        (comparison / "report.html").read_text()
    )


def test_cells_that_cannot_be_listed_have_one_row(run, write_run, comparison, monkeypatch):
    write_run("good", folder=comparison.parent)
    locked_away(monkeypatch, comparison / "cells")
    code, out, err = run("runs", comparison.parent)
    assert code == 2
    assert "good" in out
    (row,) = (line for line in out.splitlines() if "compared" in line)
    assert "cannot be read" in row
    assert err == f"error: {comparison}/cells: cannot be read: Permission denied\n"


def test_every_run_of_an_old_format_is_named(run, write_run, tmp_path):
    write_run("good", folder=tmp_path / "runs")
    for name in ("old", "older"):
        folder = write_run(name, folder=tmp_path / "runs")
        (folder / "summary.json").write_text('{"schema_version": 1}')
    code, out, err = run("runs")
    assert code == 2
    assert "good" in out
    for name, line in zip(("old", "older"), err.splitlines(), strict=True):
        assert line.startswith(f"error: runs/{name}: summary.json has format 1; this version reads")
    code, _, err = run("report", "runs/good", "runs/old")
    assert code == 2
    assert err.startswith("error: runs/old: summary.json has format 1")


@pytest.mark.parametrize("command", ["report", "runs"])
def test_a_folder_that_is_not_there_is_one_line(run, command):
    code, out, err = run(command, "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("error: nowhere: there is no such folder")
    assert err.count("\n") == 1


def test_listing_does_not_wait_for_torch_or_matplotlib(write_run, tmp_path):
    write_run("a", folder=tmp_path / "runs")
    code = (
        "import sys\n"
        "from codream_secure.cli.main import cli\n"
        "try: cli(['runs'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules), 'slow'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "CoDream" in result.stdout or "codream" in result.stdout
