"""The room imports three libraries and stands on its own."""

import ast
import importlib
import subprocess
import sys

import pytest
from secagg_helpers import ROOM

import protocols.testing

THIRD_PARTY = {"numpy", "cryptography", "msgspec", "protocols"}
STDLIB = {
    "__future__", "collections", "contextlib", "dataclasses", "enum", "functools",
    "hashlib", "itertools", "math", "os", "struct", "tracemalloc", "typing",
}  # fmt: skip
FILES = sorted(ROOM.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add((node.module or "").split(".")[0])
    return names


@every_file
def test_imports_are_within_the_allowed_set(path):
    extra = {"audit": {"hypothesis"}, "testing": {"importlib", "pkgutil", "sys"}}
    allowed = THIRD_PARTY | STDLIB | extra.get(path.parent.name, set())
    assert imports(ast.parse(path.read_text())) <= allowed


@every_file
def test_no_assert_no_global_randomness_no_output(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert)
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"RandomState", "seed", "urandom"} or (
                path.name == "driver.py" and node.attr == "urandom"
            )
        if isinstance(node, ast.Name):
            assert node.id not in {"print", "open", "eval", "exec", "input"}


@every_file
def test_only_the_driver_knows_the_operating_system(path):
    assert ("os" in imports(ast.parse(path.read_text()))) == (path.name == "driver.py")


@every_file
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            doc = isinstance(node.body[0], ast.Expr) and isinstance(
                node.body[0].value, ast.Constant
            )
            first = node.body[0].end_lineno if doc else node.lineno
            assert node.end_lineno - first <= 50, node.name


def test_runs_where_torch_and_the_learning_side_cannot_be_imported():
    code = """
import sys
for name in ("torch", "codream_secure"):
    sys.modules[name] = None
import numpy as np
from protocols import quantization
from protocols.driver import run_aggregation
from protocols.params import AggregationParams, Section
params = AggregationParams(session=bytes(32), step=0, kind="k", roster=(1, 2, 3), threshold=2,
    sections=(Section(name="g", length=2, maximum=15, clip=1.0),), broadcast_digest=bytes(32))
x = {u: {"g": np.array([u, 15], dtype=np.uint32)} for u in (1, 2, 3)}
print(run_aggregation(x, params).totals["g"].tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOM.parent
    )
    assert done.stdout == "[6, 45]\n", done.stderr


def test_lying_server_and_attacker_need_no_hypothesis():
    code = "import sys; sys.modules['hypothesis'] = None; import protocols.audit, protocols.testing"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOM.parent)


def rooms(path) -> set[str]:
    """The rooms and loose modules of the package that a file imports, in whatever form."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("protocols.")}


@every_file
def test_nothing_but_audits_imports_the_audit(path):
    if path.parent.name not in {"audit", "testing"}:
        assert not {"audit", "testing"} & rooms(path)


@pytest.mark.parametrize(("room", "other"), [("client", "server"), ("server", "client")])
def test_client_and_server_never_import_each_other(room, other):
    for path in sorted((ROOM / room).glob("*.py")):
        assert other not in rooms(path), path.name
    loaded = [f"protocols.{room}.{path.stem}" for path in (ROOM / room).glob("[a-z]*.py")]
    code = f"import sys, {', '.join(loaded)}; print([m for m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOM.parent
    )
    assert f"'protocols.{room}'" in done.stdout
    assert f"'protocols.{other}" not in done.stdout


def test_primitives_import_nothing_above_them_but_errors():
    for path in (ROOM / "primitives").glob("*.py"):
        assert rooms(path) <= {"primitives", "errors"}, path.name


SUBMODULES = sorted(path.stem for path in (ROOM / "audit").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", SUBMODULES)
def test_testing_is_another_name_of_the_audit(name):
    real = importlib.import_module(f"protocols.audit.{name}")
    alias = "audit" if name == "run" else name
    assert importlib.import_module(f"protocols.testing.{alias}") is real
    assert getattr(protocols.testing, alias) is real


def test_all_forms_of_import_give_the_same_objects():
    code = """
import protocols.testing.lies
from protocols.testing import LyingServer, audit, machine
from protocols.testing.lying import LyingServer as again
import protocols.audit.lies, protocols.audit.machine, protocols.audit.run
from protocols.audit.lying import LyingServer as real
assert LyingServer is again is real
assert protocols.testing.lies is protocols.audit.lies
assert machine is protocols.audit.machine and audit is protocols.audit.run
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOM.parent)


def test_no_test_imports_another_test():
    for path in sorted((ROOM.parent / "tests" / "protocols").rglob("test_*.py")):
        assert not [
            name for name in imports(ast.parse(path.read_text())) if name.startswith("test_")
        ]
