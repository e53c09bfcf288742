"""benchmarks/README.md names every recorded file and every part of a script."""

from pathlib import Path

import pytest

from benchmarks.learning import accuracy_communication, codream_results

FOLDER = Path(__file__).parents[2] / "benchmarks"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
# Several files that one run wrote are named by the first.
TOGETHER = ("paper_tables_tiny",)


@pytest.mark.parametrize("path", sorted((FOLDER / "results").iterdir()), ids=lambda p: p.name)
def test_every_recorded_file_is_named(path):
    stem = next((name for name in TOGETHER if path.name.startswith(name)), path.stem)
    assert f"(results/{stem}." in README


@pytest.mark.parametrize("part", [*accuracy_communication.PARTS, *codream_results.PARTS, "ceiling"])
def test_every_part_has_a_command(part):
    commands = [
        line.split("--only ")[1].split("`")[0] for line in README.splitlines() if "--only " in line
    ]
    assert part in " ".join(commands).split()
