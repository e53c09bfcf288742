"""A cell is made once, kept as JSON, and a failure takes no other cell with it."""

import json

import pytest

from benchmarks.shared.grid import Grid


class Counted:
    """Something to make, and how often it was."""

    def __init__(self, *results):
        self.results, self.times = results, 0

    def __call__(self):
        self.times += 1
        result = self.results[min(self.times, len(self.results)) - 1]
        if isinstance(result, Exception):
            raise result
        return result


def test_a_cell_is_made_once_and_kept_with_its_settings(tmp_path):
    make = Counted({"accuracy": 0.5})
    grid = Grid(tmp_path / "kept")
    for known in (grid, grid, Grid(tmp_path / "kept")):
        cell = known.cell("iid, eps 8", {"dp_eps": 8.0}, make, dict[str, float])
        assert cell.result == {"accuracy": 0.5}
    assert make.times == 1
    (path,) = (tmp_path / "kept").glob("*.json")
    assert path.name.startswith("iid-eps-8-")
    kept = json.loads(path.read_text())
    assert (kept["name"], kept["settings"]) == ("iid, eps 8", {"dp_eps": 8.0})
    assert "torch" in kept["made_with"]


@pytest.mark.parametrize(("name", "settings"), [("b", {"seed": 0}), ("a", {"seed": 1})])
def test_another_name_or_setting_is_another_cell(tmp_path, name, settings):
    make, grid = Counted(1, 2), Grid(tmp_path)
    assert grid.result("a", {"seed": 0}, make, int) == 1
    assert grid.result(name, settings, make, int) == 2


def test_a_cell_that_cannot_be_read_is_made_again(tmp_path, capsys):
    make = Counted(7)
    Grid(tmp_path).cell("a", {}, make, int)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(b"{")
    assert Grid(tmp_path).result("a", {}, make, int) == 7
    assert make.times == 2
    assert "is not used" in capsys.readouterr().err
    assert json.loads(path.read_text())["result"] == 7


def test_a_failure_is_not_kept_and_is_made_again_by_the_next_grid(tmp_path):
    make = Counted(ValueError("no such luck"), 3)
    cell = Grid(tmp_path).cell("a", {}, make, int)
    assert (cell.result, cell.error) == (None, "ValueError: no such luck")
    assert not list(tmp_path.iterdir())
    assert Grid(tmp_path).result("a", {}, make, int) == 3


def test_a_script_that_needs_the_result_ends_with_the_reason():
    with pytest.raises(SystemExit, match="no such luck"):
        Grid().result("a", {}, Counted(ValueError("no such luck")), int)
