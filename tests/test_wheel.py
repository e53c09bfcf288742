"""The wheel builds, installs into clean environments, and runs there.

PyTorch is left out of these environments: its packages take gigabytes. So a command that needs no
PyTorch runs, and `protocols`, which never needs it, computes a sum.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_TORCH = (
    *("click", "cloup", "cryptography", "filelock", "hypothesis", "msgspec", "numpy"),
    *("rich", "tomli-w"),
)
SUM = """
import sys
import numpy as np
from protocols.driver import run_aggregation
from protocols.params import AggregationParams, Section
params = AggregationParams(session=bytes(32), step=0, kind="k", roster=(1, 2, 3), threshold=2,
    sections=(Section(name="g", length=2, maximum=15, clip=1.0),), broadcast_digest=bytes(32))
x = {u: {"g": np.array([u, 15], dtype=np.uint32)} for u in (1, 2, 3)}
print(run_aggregation(x, params).totals["g"].tolist(), "torch" in sys.modules)
import protocols.audit.strategies, protocols.testing.lying
"""


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy: a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("codream_secure", "protocols"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    (found,) = folder.glob("codream_secure-*.whl")
    return found


def newest_python():
    """Return an interpreter of the newest version that the installed torch supports, if any."""
    supported = re.findall(
        r"Python :: 3\.(\d+)", "\n".join(metadata.metadata("torch").get_all("Classifier") or ())
    )
    minors = sorted({int(minor) for minor in supported}, reverse=True)
    for minor in (m for m in minors if m > sys.version_info.minor):
        here = Path(sys.base_prefix).parent.glob(f"3.{minor}.*/bin/python3")
        on_path = shutil.which(f"python3.{minor}")
        for candidate in filter(None, (on_path, *here)):
            done = subprocess.run([candidate, "-c", ""], capture_output=True, check=False)
            if done.returncode == 0:
                return str(candidate)
    return None


@pytest.mark.parametrize(
    "interpreter", [sys.executable, pytest.param(newest_python(), marks=pytest.mark.slow)]
)
def test_the_wheel_runs_in_a_clean_environment(wheel, tmp_path, interpreter):
    if interpreter is None:
        pytest.skip("no newer Python that torch supports is installed here")
    run(interpreter, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", *WITHOUT_TORCH)
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    version = metadata.version("codream-secure")
    shown = run(tmp_path / "env" / "bin" / "codream-secure", "--version", cwd=tmp_path)
    assert version in shown
    assert "--dp-eps" in run(python, "-m", "codream_secure", "simulate", "--help", cwd=tmp_path)
    assert run(python, "-c", SUM, cwd=tmp_path) == "[6, 45] False\n"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "codream_secure",
        "protocols",
    }
    for kept in (
        "codream_secure/py.typed",
        "codream_secure/report/page.html.j2",
        "codream_secure/flower/app.toml",
        "protocols/py.typed",
        "protocols/SPEC.md",
    ):
        assert kept in names
