"""What the whole command line has in common: help, examples, exit codes, the version."""

import re

import click
import pytest

from codream_secure.cli.main import cli
from codream_secure.data import DATASET_NAMES
from codream_secure.models.names import MODEL_NAMES

COMMANDS = (
    [],
    ["simulate"],
    ["compare"],
    ["report"],
    ["runs"],
    ["protocol", "parameters"],
    ["audit", "protocol"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_shows_examples_that_parse(run, command):
    code, out, _ = run(*command, "--help")
    assert code == 0
    examples = out.split("Examples:")[1].split("\n\n")[0].strip().splitlines()
    assert examples
    for example in examples:
        program, *words = example.strip().split("   ")[0].split()
        assert program == "codream-secure"
        chosen = cli
        while isinstance(chosen, click.Group):
            chosen, words = chosen.commands[words[0]], words[1:]
        chosen.make_context(chosen.name, words)


def test_the_help_says_what_exit_codes_mean(run):
    _, out, _ = run("--help")
    assert re.findall(r"^    (\d+)  ", out, re.MULTILINE) == ["0", "1", "2", "3", "70", "130"]


def test_version_and_help(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("codream-secure, version ")
    code, out, _ = run("simulate", "--help-all")
    assert code == 0
    text = re.sub(r"\s+", " ", out)
    assert ", ".join(DATASET_NAMES) in text
    assert re.search(", ".join(MODEL_NAMES), text)
    for option in (
        "--samples-per-client",
        "--image-size",
        "--dp-eps",
        "--threshold",
        "--label-bits",
        "--no-secure",
        "--config",
        "Examples",
    ):
        assert option in out
