"""Every file, test and name that a docstring, a comment or a page cites is there."""

import ast
import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"(?<![\w./*{-])((?:[\w-]+/)*[\w-]+\.(?:py|md))(?:::(\w+))?(?![\w*{(])")
NAME = re.compile(r"`{1,2}((?:[a-z_]+\.)*[A-Z][a-z]+[A-Z]?\w*(?:\.\w+)*)`{1,2}")
MODULE = re.compile(r"`{1,2}((?:codream_secure|protocols|benchmarks)(?:\.\w+)+)`{1,2}")
# Files of users, in examples; the paper's code.
OTHERS = {"my_module.py", "__init__.py"}
# In backticks, but no name of the code.
METHODS = {"CoDream", "FedAvg"}
SPEC = re.compile(r"SPEC ((?:\d+(?:\.\d+)*)(?:(?:, | to | and )\d+(?:\.\d+)*)*)")


def tracked():
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Path(name) for name in done.stdout.splitlines() if (ROOT / name).is_file()]


FILES = tracked()
SOURCES = [p for p in FILES if p.suffix == ".py"]
SPECIFICATION = (ROOT / "protocols" / "SPEC.md").read_text(encoding="utf-8")
# The changelog and records cite what was there at their time.
PAGES = [
    p for p in FILES if p.suffix == ".md" and p.name != "CHANGELOG.md" and "results" not in p.parts
]


def prose(path):
    """Yield the docstrings and the comments of a module."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@cache
def identifiers():
    """Return every name that the project's code defines or imports."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.alias):
                found.add((node.asname or node.name).split(".")[-1])
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
    return found


def file_is_there(name, citing):
    """Return the file that a citation means: from the root, a package, or by its last parts."""
    near = [citing.parent / name, Path(name)]
    for candidate in near:
        if (ROOT / candidate).is_file():
            return ROOT / candidate
    ends = [path for path in FILES if path.as_posix().endswith("/" + name)]
    return ROOT / ends[0] if ends else None


def missing(text, citing):
    for name, test in FILE.findall(text):
        if Path(name).name in OTHERS:
            continue
        found = file_is_there(name, citing)
        if found is None:
            yield name
        elif test and not re.search(rf"^(async )?(def|class) {test}\b", found.read_text(), re.M):
            yield f"{name}::{test}"
    for name in MODULE.findall(text):
        parts = name.split(".")
        known = any(
            (ROOT / Path(*parts[:k])).with_suffix(".py").is_file()
            or (ROOT / Path(*parts[:k])).is_dir()
            for k in range(len(parts), 1, -1)
        )
        if not known or not set(parts[2:]) <= identifiers() | {p.stem for p in SOURCES} | {
            part for p in SOURCES for part in p.parts
        }:
            yield name


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_docstrings_and_comments_cite_what_is_there(path):
    text = "\n".join(prose(path))
    names = [name for name in NAME.findall(text) if name not in METHODS]
    known = identifiers() | {p.stem for p in SOURCES}
    lost = [n for n in names if n.split(".")[-1] not in known and n.split(".")[0] not in known]
    assert [*missing(text, path), *lost] == []


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_pages_cite_files_and_tests_that_are_there(path):
    assert list(missing((ROOT / path).read_text(encoding="utf-8"), path)) == []


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=str)
def test_sections_of_the_specification_are_there(path):
    known = re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", SPECIFICATION, flags=re.MULTILINE)
    for citation in SPEC.findall((ROOT / path).read_text(encoding="utf-8")):
        assert set(re.findall(r"\d+(?:\.\d+)*", citation)) <= set(known)
