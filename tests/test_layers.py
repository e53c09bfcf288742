"""Rooms import only from below: the order stands here, and CONTRIBUTING.md draws it."""

import re
from pathlib import Path

import structure

ROOT = Path(__file__).parents[1]
# The highest first. Imports inside functions and under TYPE_CHECKING count like all others.
ROOMS = (
    "__main__.py",
    "cli",
    "__init__.py",
    "api",
    "compare",
    "report",
    "runs",
    "flower/operations",
    "flower",
    "sites",
    "baselines",
    "audit",
    "federation",
    "learning",
    "dreaming",
    "privacy",
    "aggregation",
    "config",
    "models",
    "data",
    "runtime",
    "storage",
    "errors.py",
    "_version.py",
)
IMPORTS = structure.file_imports(ROOT)
OURS = {
    path: {other for other in found if other.parts[0] == "codream_secure"}
    for path, found in IMPORTS.items()
    if path.parts[0] == "codream_secure"
}


def test_every_room_has_its_place_in_the_order():
    found = {structure.room_of(path) for path in OURS}
    assert found == {f"codream_secure/{room}" for room in ROOMS}


def test_no_import_runs_back_up():
    order = [f"codream_secure/{room}" for room in ROOMS]
    assert structure.back_up(OURS, order) == []


def test_no_circle_ties_files_together():
    packages = {
        path: {other for other in found if other.parts[0] != "benchmarks"}
        for path, found in IMPORTS.items()
        if path.parts[0] != "benchmarks"
    }
    assert structure.cycles(packages) == []


def test_protocols_imports_nothing_of_the_learning_side():
    for path, found in IMPORTS.items():
        if path.parts[0] == "protocols":
            assert all(other.parts[0] == "protocols" for other in found), path


def test_contributing_draws_the_same_layers():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = text.split("```text layers\n")[1].split("```")[0]
    drawn = re.findall(r"^ *([\w/]+) ", picture, flags=re.MULTILINE)
    assert drawn == [room for room in ROOMS if not room.endswith(".py")]
