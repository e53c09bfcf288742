"""What README and docs/ show is true: commands run or at least parse, code runs, links lead.

Every command line of the documents is parsed. Those in `PARSED_ONLY` are no more than that, for
the reason given there; all others are run, here or, if `is_slow`, by `make test-slow`.
"""

import argparse
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import codream_secure.api.compare
import codream_secure.cli.simulate
from codream_secure.cli.main import cli
from codream_secure.config.combinations import inapplicable
from codream_secure.config.methods import parse_method
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data import DATASET_NAMES, InputSpec
from codream_secure.errors import UserError
from codream_secure.models.build import build_model
from codream_secure.models.names import MODEL_NAMES
from codream_secure.storage.toml import load_toml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A script has a main of its own; the other modules of benchmarks/ are what scripts share.
SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
OURS = re.compile(
    r"(\S*COMPLETE=\w+ )?codream-secure |python -m benchmarks\.|eval .*codream-secure"
)

# Commands that the documents show for what they refuse.
EXIT_CODES = {
    "codream-secure simulate --clients 2": 2,
    "codream-secure simulate --resume run --rounds 3": 2,
}

# What takes more than some seconds is run by `make test-slow`: these, and all that trains but
# QUICK_RUNS and what only prints help.
SLOW = {
    "codream-secure audit protocol",
    "codream-secure predict codream-local/site-0/model photo.png",
    "codream-secure audit privacy",
    "codream-secure audit privacy --only sums --only one-run",
    "codream-secure audit privacy runs/private --shadows 4",
    "codream-secure audit protocol --json",
    "codream-secure audit protocol --examples 1000",
    "python -m benchmarks.paper.tables --quick --only table2",
}
QUICK_RUNS = set(EXIT_CODES)
# Pages whose Python code takes more than some seconds.
SLOW_PAGES = {"accounting", "api", "data-and-models"}

# Never run: only whether the options exist and go together is checked.
HOURS, RECORDS = "takes hours, or half of one", "rewrites benchmarks/results/"
NO_DATA = "needs data that is no part of the project"
PARSED_ONLY = {
    "codream-secure export MODEL --onnx": "needs the extra onnx",
    "codream-secure export my-run/models/server --onnx": "needs the extra onnx",
    "codream-secure compare": "the command as a name: the defaults take half an hour",
    "python -m benchmarks.learning.accuracy_communication --only digits_skewed": HOURS,
    "python -m benchmarks.learning.codream_results --only ceiling --seeds 1": NO_DATA,
    "python -m benchmarks.learning.codream_results --only cifar10": HOURS,
    "python -m benchmarks.learning.codream_results --only ablation": HOURS,
    "python -m benchmarks.learning.codream_results --only bits": HOURS,
    "python -m benchmarks.learning.codream_results --only fast": HOURS,
    "python -m benchmarks.learning.codream_results --only long": HOURS,
    "python -m benchmarks.learning.codream_results --only real": HOURS,
    "python -m benchmarks.learning.codream_results --only unequal": HOURS,
    "python -m benchmarks.learning.codream_results --only unequal_iid": HOURS,
    "python -m benchmarks.learning.digits_accuracy": HOURS,
    "python -m benchmarks.choices.digits_choices": HOURS,
    "python -m benchmarks.choices.digits_choices --only statistics": HOURS,
    'python -m benchmarks.choices.digits_choices --only "client level"': HOURS,
    "python -m benchmarks.learning.privacy_utility": HOURS,
    "python -m benchmarks.choices.dream_choices --data FASHION_MNIST.npz": NO_DATA,
    "python -m benchmarks.costs.dream_step": "takes minutes",
    "python -m benchmarks.costs.dream_step --device cuda": "needs a GPU",
    "python -m benchmarks.costs.message_sizes": "leaves out accuracy without data that is no part",
    "python -m benchmarks.paper.tables": "takes minutes; `--quick` of all scripts is run below",
    "python -m benchmarks.paper.tables --scale tiny": "the same",
    "python -m benchmarks.paper.tables --scale small --out kept": HOURS,
    "python -m benchmarks.paper.tables --scale full --out kept-full": "needs a GPU and days",
    "python -m benchmarks.paper.tables --scale small --data my.npz --out kept --only table5": HOURS,
    "python -m benchmarks.paper.tables --record --out kept": RECORDS,
}

# Settings of small runs that stand in for the runs that the documents name.
TINY = (
    "simulate --clients 4 --samples-per-client 20 --rounds 2 --models linear --dreams 8 "
    "--dream-steps 1 --kd-epochs 1 --quiet"
)


def blocks(page, *languages):
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def commands(page):
    """Return the page's command lines, of blocks and within text, without comments."""
    lines = [
        re.sub(r"\s#.*", "", line).removeprefix("$ ").strip()
        for block in blocks(page, "", "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [" ".join(line.split()) for line in (*lines, *spans) if OURS.match(line)]


COMMANDS = sorted({command for page in PAGES for command in commands(page)})
EVERY_COMMAND = pytest.mark.parametrize("command", COMMANDS)


def is_slow(command):
    trains = re.match(r"codream-secure (simulate|compare|deploy local)\b(?!.*--help)", command)
    return command in SLOW or (trains and command not in QUICK_RUNS)


RUN = [command for command in COMMANDS if command not in PARSED_ONLY]
EVERY_RUN = pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow if is_slow(c) else ()) for c in RUN],
)


def test_the_documents_show_commands_and_the_tables_here_name_no_others():
    assert len(COMMANDS) > 40
    assert (SLOW | QUICK_RUNS | PARSED_ONLY.keys()) - set(COMMANDS) == set()
    assert not (SLOW | QUICK_RUNS) & PARSED_ONLY.keys()
    assert all(PARSED_ONLY.values())


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory):
    """Return a folder with all that the documents' commands ask for, but runs."""
    folder = tmp_path_factory.mktemp("documents")
    digits = load_digits()
    images, labels = (digits.images * 15.9).astype(np.uint8), digits.target
    np.savez(
        folder / "my-images.npz",
        x_train=images[:400],
        y_train=labels[:400],
        x_test=images[1600:],
        y_test=labels[1600:],
    )
    shutil.copy(folder / "my-images.npz", folder / "my.npz")
    for number, (image, label) in enumerate(zip(images[:300], labels, strict=False)):
        (folder / f"photos/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"photos/{label}/{number}.png")
    (code,) = [
        c for c in blocks(ROOT / "docs/data-and-models.md", "python") if c.startswith("# my_module")
    ]
    (folder / "my_module.py").write_text(code)
    (folder / "examples").mkdir()
    for example in ROOT.glob("examples/*.toml"):
        text = example.read_text(encoding="utf-8").replace('"fashion-mnist"', '"my-images.npz"')
        (folder / "examples" / example.name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def run_folder(example_folder, tmp_path_factory):
    """Return the same with finished runs, `runs/private` under DP, and `run` cut off."""
    folder = tmp_path_factory.mktemp("runs") / "here"
    shutil.copytree(example_folder, folder)
    execute(f"codream-secure {TINY} --checkpoint-every 1 --out run", folder)
    execute(f"codream-secure {TINY} --dp-eps 8 --dp-steps 4 --out runs/private", folder)
    for name in ("runs/A", "runs/B", "first"):
        shutil.copytree(folder / "run", folder / name)
        shutil.rmtree(folder / name / "checkpoint")
    for name in ("MODEL", "my-run/models/server", "codream-local/site-0/model"):
        shutil.copytree(folder / "first/models/server", folder / name)
    for name in ("new.png", "photo.png"):
        shutil.copy(folder / "photos/0/0.png", folder / name)
    summary = folder / "run" / "summary.json"
    summary.write_text(summary.read_text().replace('"rounds_finished": 2', '"rounds_finished": 1'))
    return folder


def execute(command, folder):
    """Run one command line as a shell does, and check its exit code."""
    links = folder.parent / "bin"
    links.mkdir(exist_ok=True)
    script = f'#!/bin/sh\nexec "{sys.executable}" -m codream_secure "$@"\n'
    for name, text in (
        ("codream-secure", script),
        ("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'),
    ):
        (links / name).write_text(text)
        (links / name).chmod(0o755)
    if out := re.fullmatch(r"codream-secure simulate .*--out (\S+).*", command):
        shutil.rmtree(folder / out[1], ignore_errors=True)
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{links}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == EXIT_CODES.get(command, 0), result.stderr
    return result.stdout


class Planned:
    """In place of `Comparison`: asks for every cell's settings and runs none."""

    def __init__(self, plan, folder, *, dataset, progress):
        for name in plan.methods:
            plan.config(parse_method(name), plan.seeds[0])
        raise SystemExit(0)


class OptionsReadError(Exception):
    """A script has read its options: that is as far as it is run."""


@EVERY_COMMAND
def test_every_command_has_options_that_exist_and_go_together(command, example_folder, monkeypatch):
    monkeypatch.chdir(example_folder)
    if command.startswith("python "):
        check_script(command, monkeypatch)
    elif "COMPLETE" not in command:  # that has no options; what it prints is looked at below
        check_program(command, monkeypatch)


def check_script(command, monkeypatch):
    _, _, script, *words = shlex.split(command)
    module, found = importlib.import_module(script), []
    read = argparse.ArgumentParser.parse_args

    def parse(parser):
        found.append(read(parser))
        raise OptionsReadError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(OptionsReadError):
        module.main()
    if hasattr(module, "ARTEFACTS"):  # paper_tables checks more, later
        (options,) = found
        assert not module._mistake(options)


def check_program(command, monkeypatch):
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|;&<>()")
    lexer.whitespace_split = True
    _, *words = lexer
    words = words[: words.index("|")] if "|" in words else words
    chosen = cli
    while isinstance(chosen, click.Group) and not words[0].startswith("-"):
        chosen, words = chosen.commands[words[0]], words[1:]
    if command in PARSED_ONLY and not words:
        return
    if set(words) <= {"--help", "--version"} and words:
        with pytest.raises(click.exceptions.Exit) as done:
            chosen.make_context(chosen.name, words)
        assert done.value.exit_code == 0
        return
    context = chosen.make_context(chosen.name, words)
    monkeypatch.setattr(codream_secure.cli.simulate, "_simulate", lambda *_, **__: 0)
    monkeypatch.setattr(codream_secure.api.compare, "Comparison", Planned)
    if chosen.name in ("simulate", "compare") and not context.params.get("only_sizes"):
        refused = command == "codream-secure simulate --clients 2"  # as the page says
        with pytest.raises(UserError if refused else SystemExit) as done:
            chosen.invoke(context)
        assert refused or done.value.code == 0


@EVERY_RUN
def test_every_command_runs(command, run_folder, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(run_folder, folder)
    if re.search("(zsh|fish)_source", command):
        # For another shell than the one that runs it here: without what that shell does with it.
        (command,) = re.findall(r"_CODREAM_\w+=\w+ codream-secure", command)
    printed = execute(command, folder)
    if "--json" in command and "|" not in command:
        json.loads(printed)
    if command.startswith("_CODREAM"):
        assert "_codream_secure_completion" in printed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_every_shell(shell, example_folder):
    printed = execute(f"_CODREAM_SECURE_COMPLETE={shell}_source codream-secure", example_folder)
    assert "_codream_secure_completion" in printed


# docs/auditing.md is not here: tests/protocols/test_documents_of_the_audit.py runs its block, and
# compares what it prints.
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.stem in SLOW_PAGES else ())
        for page in PAGES
        if page.stem != "auditing"
    ],
    ids=lambda page: page.stem,
)
def test_every_python_block_of_the_documents_runs(page, tmp_path):
    scripts = []
    for number, code in enumerate(blocks(page, "python")):
        scripts.append(tmp_path / f"block{number}.py")
        scripts[-1].write_text(code)
    # One process for all, each with names of its own: importing PyTorch takes seconds.
    run_all = "import runpy, sys; [runpy.run_path(s, run_name='__main__') for s in sys.argv[1:]]"
    subprocess.run(
        [sys.executable, "-c", run_all, *scripts],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=900,
    )


def test_the_model_of_the_guide_can_be_used(example_folder, monkeypatch):
    monkeypatch.chdir(example_folder)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    model = build_model("my_module:my_function", InputSpec(3, 8, 8, 4), seed=0)
    assert any(type(layer).__name__ == "BatchNorm2d" for layer in model.modules())
    monkeypatch.delitem(sys.modules, "my_module")


def test_the_guide_to_options_names_all_that_cannot_be_combined():
    page = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    section = page.split("## What cannot be combined")[1]
    named = re.findall(r"--([\w-]+)(…?)", section)
    off = [
        {},
        {"dp_eps": 1.0},
        {"method": "codream-fast", "dream_steps": 0},
        {"collaboration": False},
        {"secure": False},
    ]
    for options in off:
        for name in inapplicable(Config.from_options(options)):
            option = name.replace("_", "-")
            assert any(
                option == word or (more and option.startswith(word)) for word, more in named
            ), option


def test_every_example_is_a_run_that_can_be_started():
    examples = list(ROOT.glob("examples/*.toml"))
    assert examples
    for example in examples:
        resolve(Config.from_options(load_toml(example)))


def anchors(page):
    """Return the anchors that a host of repositories gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


def test_links_in_the_documents_lead_somewhere():
    pages = (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


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


def test_the_guide_lists_every_dataset_and_architecture():
    guide = (ROOT / "docs" / "data-and-models.md").read_text(encoding="utf-8")
    for name in (*DATASET_NAMES, *MODEL_NAMES):
        assert f"`{name}`" in guide, name


def test_every_figure_that_names_its_record_is_as_recorded():
    """`python docs/fill_figures.py` writes them."""
    filled = runpy.run_path(str(ROOT / "docs" / "fill_figures.py"))["filled"]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert filled(text) == text, page
    assert filled(README.replace(" %<!--/f-->", " ?<!--/f-->")) == README
    assert README.count("<!--f ") >= 8


def test_benchmarks_readme_names_every_script():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        assert f"python -m {script}" in text, script


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_has_a_quick_run_with_json(script):
    command = [sys.executable, "-m", script, "--quick", "--json"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    report = json.loads(result.stdout)
    assert report["rows"]
    for gate in report["gates"]:
        figures = gate.keys() - {"name", "target", "holds"}
        assert figures in ({"value"}, {"ours", "theirs", "ratio", "source"})
        assert gate["holds"], gate
    assert result.returncode == 0
