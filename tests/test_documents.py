"""The commands that README and benchmarks promise, run as they stand. Slow: minutes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from codream_secure.config import Config, load_toml
from codream_secure.data import DATASET_NAMES, InputSpec
from codream_secure.models import MODEL_NAMES, build_model
from codream_secure.resolve import resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^codream-secure (simulate\b[^#\n]*)", README, flags=re.MULTILINE)


def test_the_readme_shows_several_commands():
    assert len(COMMANDS) >= 4


def test_every_example_is_a_run_that_can_be_started():
    examples = list(ROOT.glob("examples/*.toml"))
    assert examples
    for example in examples:
        resolve(Config.from_options(load_toml(example)))


def test_links_in_the_documents_lead_somewhere():
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")):
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            there = "://" in target or (document.parent / target).exists()
            assert there, f"{document.name}: {target}"


def test_every_claim_of_codream_names_code_and_a_test_that_are_there():
    text = (ROOT / "docs" / "codream.md").read_text(encoding="utf-8")
    section = text.split("## What is claimed")[1].split("\n## ")[0]
    rows = [line.split("|")[1:4] for line in section.splitlines() if line.startswith("| ")]
    claims = [row for row in rows[1:] if "not yet" not in row[1]]
    assert len(claims) > 20
    for claim, code, test in claims:
        names = re.findall(r"`([\w/.]+)`", code)
        folder = ROOT / "codream_secure"
        for name in names:
            # A bare name lies in the folder of the name before it, or at the top.
            found = [p for p in (ROOT / "codream_secure" / name, folder / name) if p.exists()]
            assert found, f"{claim}: {name}"
            folder = found[0].parent
        (named,) = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", test)
        source = (ROOT / "tests" / "codream_secure" / named[0]).read_text(encoding="utf-8")
        assert not named[1] or f"def {named[1]}(" in source, f"{claim}: {named}"


def test_the_readme_lists_every_dataset_and_architecture():
    for name in (*DATASET_NAMES, *MODEL_NAMES):
        assert f"`{name}`" in README, name


def test_the_readme_s_own_model_can_be_used(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n# my_module\.py[^\n]*\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    build_model("my_module:my_function", InputSpec(3, 8, 8, 4), seed=0)
    monkeypatch.delitem(sys.modules, "my_module")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs(command, tmp_path):
    digits = load_digits()
    images, labels = (digits.images * 15.9).astype(np.uint8), digits.target
    np.savez(
        tmp_path / "my-images.npz",
        x_train=images[:1400],
        y_train=labels[:1400],
        x_test=images[1400:],
        y_test=labels[1400:],
    )
    (tmp_path / "examples").mkdir()
    for example in ROOT.glob("examples/*.toml"):
        text = example.read_text(encoding="utf-8").replace('"fashion-mnist"', '"my-images.npz"')
        (tmp_path / "examples" / example.name).write_text(text)
    arguments = [sys.executable, "-m", "codream_secure", *command.split()]
    subprocess.run(arguments, cwd=tmp_path, check=True, capture_output=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", sorted((ROOT / "benchmarks").glob("[!_]*.py")), ids=lambda p: p.stem
)
def test_every_benchmark_has_a_quick_run_with_json(script, tmp_path):
    command = [sys.executable, str(script), "--quick", "--json"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    report = json.loads(result.stdout)
    assert report["rows"]
    for gate in report["gates"]:
        figures = gate.keys() - {"name", "target", "holds"}
        assert figures in ({"value"}, {"ours", "theirs", "ratio", "source"})
        assert gate["holds"], gate
    assert result.returncode == 0
