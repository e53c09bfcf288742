"""examples/flower-fedavg: what its README says of the difference is all that differs."""

import difflib
import json
import re
from pathlib import Path

import pytest
from app_processes import App

EXAMPLE = Path(__file__).parents[3] / "examples" / "flower-fedavg"
VERSIONS = ("plain", "secaggplus", "secure")


def changed(side):
    """Return the lines that differ between plain and secure, docstrings aside."""
    texts = [
        (EXAMPLE / "digits_fedavg" / f"{side}_{version}.py").read_text().splitlines()[1:]
        for version in ("plain", "secure")
    ]
    found = difflib.unified_diff(*texts, lineterm="", n=0)
    return {line for line in found if not line.startswith(("---", "+++", "@@"))}


@pytest.mark.parametrize(("side", "number"), [("client", 0), ("server", 1)])
def test_the_readme_shows_every_line_that_differs(side, number):
    text = (EXAMPLE / "README.md").read_text()
    shown = re.findall(r"```diff\n(.*?)```", text, flags=re.DOTALL)[number]
    assert set(shown.splitlines()) == changed(side)


@pytest.mark.integration
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_example_learns_over_processes(tmp_path, version):
    out = tmp_path / "run"
    settings = {"rounds": 2, "out": str(out / "result.json")}
    parts = (f"digits_fedavg.server_{version}:app", f"digits_fedavg.client_{version}:app")
    print("time limit: 900 s")
    with App(EXAMPLE, out, components=parts, settings=settings, timeout=900.0) as app:
        app.begin()
        app.wait((out / "result.json").exists)
        log = app.log("run")
        accuracy = json.loads((out / "result.json").read_text())["2"]["eval_acc"]
    # Chance is 0.1; two rounds of five epochs on 480 pictures a client.
    assert accuracy > 0.5
    assert "Traceback" not in log
