"""Run folders are read strictly, and what is wrong with one is one line that names it."""

import re

import pytest

from codream_secure.errors import UserError
from codream_secure.runs.reading import read, read_all


@pytest.mark.parametrize("field", ["dataset", "test_digest"])
def test_runs_on_different_data_are_not_compared(write_run, field):
    runs = [write_run(name, summary={field: name}) for name in ("a", "b")]
    with pytest.raises(UserError, match="tested on different data and cannot be compared"):
        read_all(runs)


def test_a_digest_that_one_run_lacks_does_not_matter(write_run):
    unfinished = write_run("b", method="fedavg")
    (unfinished / "summary.json").unlink()
    read_all([write_run("a", summary={"test_digest": "x"}), unfinished])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("summary.json", '{"format": 2}'),
        ("summary.json", "[" * 100_000),
        ("summary.json", b"\xff"),
        ("metrics.jsonl", '{"round": 1}\n{"rou'),
        ("metrics.jsonl", '{"round": "one"}\n'),
        ("config.toml", "= ="),
    ],
)
def test_a_damaged_folder_is_named(write_run, name, content):
    run = write_run("a")
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"{re.escape(str(run))}: .*damaged.*simulate --config"):
        read_all([run])


@pytest.mark.parametrize("old", ['{"schema_version": 1, "method": "codream"}', '{"format": 1}'])
def test_a_folder_of_an_old_format_is_named_with_its_format(write_run, old):
    run = write_run("a")
    (run / "summary.json").write_text(old)
    says = rf"{re.escape(str(run))}: summary.json has format 1; this version reads format 2; run it"
    with pytest.raises(UserError, match=says):
        read_all([run])
    (run / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"summary\.json has no format number"):
        read_all([run])


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_all([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="not the folder of a run"):
        read_all([tmp_path])
    (tmp_path / "cells").mkdir()
    with pytest.raises(UserError, match="none of its cells is finished"):
        read_all([tmp_path])


def test_an_unfinished_cell_is_no_run_of_the_method_in_its_settings(comparison):
    cell = comparison / "cells" / "scaffold-seed0"
    (cell / "config.toml").write_text('method = "codream"')
    assert read(cell).method == "scaffold"


def test_unknown_and_missing_fields_of_a_row_are_refused(write_run):
    run = write_run("a")
    line = (run / "metrics.jsonl").read_text().splitlines()[0]
    for changed in (line[:-1] + ',"more":1}', line.replace('"seconds":1.5,', "")):
        assert changed != line
        (run / "metrics.jsonl").write_text(changed + "\n")
        with pytest.raises(UserError, match=r"metrics.jsonl is damaged \(line 1 is no round: Obj"):
            read(run)


def test_a_setting_of_another_type_is_one_line(write_run):
    run = write_run("a", config={"seed": "many"}, summary={"seed": 0})
    with pytest.raises(UserError, match=r"config\.toml is damaged \(Expected `int`, got `str`"):
        read(run)
