"""The audit's documents tell the truth: every named test exists, the example runs as printed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protocols.audit import run as audits

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
README = (HERE / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "auditing.md").read_text(encoding="utf-8")
FAULTS = [
    f"{letter}{number}"
    for letter, count in {"w": 13, "f": 6, "l": 3, "p": 5}.items()
    for number in range(1, count + 1)
]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def row(fault: str) -> str:
    (found,) = re.findall(rf"^\| {fault} \|.*$", README, flags=re.MULTILINE)
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_a_test_that_exists(fault):
    named = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", row(fault))
    assert named
    for file, name in named:
        assert name in functions(HERE / (file or "test_faults_of_others.py"))
    assert any(name.startswith(f"test_{fault}_") for _, name in named)


def test_every_test_of_a_fault_is_in_the_table():
    for name in functions(HERE / "test_faults_of_others.py"):
        if name.startswith("test_"):
            assert f"`{name}`" in README


def test_every_file_that_is_named_exists():
    for name in set(re.findall(r"`((?:tests/\w+/)?(?:\w+/)*\w+\.py)`", README)):
        places = [HERE / name, ROOT / name, ROOT / "tests" / "codream_secure" / name]
        assert any(place.exists() for place in places), name


def test_the_page_lists_every_property():
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert listed == [check.__name__ for check in audits.PROPERTIES]


def test_links_of_both_pages_lead_somewhere():
    for folder, text in ((HERE, README), (ROOT / "docs", PAGE)):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert "://" in target or (folder / target).exists(), target


@pytest.mark.slow
def test_the_example_of_the_page_prints_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (printed,) = re.findall(r"It prints[^`]*```\n(.*?)```", PAGE, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"found: client \d+ gave (both shares|2 different answers).*", found)
    assert rest == printed.splitlines()[1:]
