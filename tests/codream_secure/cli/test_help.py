"""A dozen options are explained and the rest named; a typo is told what may be meant."""

import re

import pytest

from codream_secure.cli.compare import compare
from codream_secure.cli.main import cli
from codream_secure.cli.simulate import simulate
from codream_secure.config.settings import settings


def explained(text):
    return re.findall(r"^  (?:-h, )?(--[a-z0-9-]+)", text.split("\nMore options")[0], re.MULTILINE)


@pytest.mark.parametrize("command", [simulate, compare])
def test_help_explains_few_options_and_names_the_others(run, command):
    code, out, _ = run(command.name, "--help")
    assert code == 0
    rest = out.split("More options; --help-all")[1].split("Examples:")[0]
    first, rest = explained(out), re.findall(r"--[a-z0-9-]+", rest)
    assert len(first) <= 17
    assert {"--clients", "--dp-eps", "--preset", "--json", "--help-all"} <= set(first)
    every = {name.opts[0] for name in command.params if not name.hidden}
    assert set(first) | set(rest) >= every
    assert not set(first) & set(rest)
    assert not set(first) & set(rest) - {
        "--help-all",
        "--clients",
        "--models",
    }  # examples have these
    code, out, _ = run(command.name, "--help-all")
    assert code == 0
    assert set(explained(out)) >= every
    assert "More options" not in out
    for title in ("Data:", "Dreams:", "Differential privacy:"):
        assert f"\n{title}\n" in out


def test_no_name_is_broken_at_its_dashes(run):
    names = {f"--{setting.name}".replace("_", "-") for setting in settings()}
    assert names <= set(re.findall(r"--[a-z0-9-]+", run("simulate", "--help")[1]))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["simulate", "--lr", "3"], "--learning-rate"),
        (["simulate", "--epochs", "3"], "--local-epochs or --warmup-epochs"),
        (["simulate", "--epsilon=8"], "--dp-eps"),
        (["simulate", "--dp_eps", "8"], "--dp-eps"),
        (["simulate", "--num-clients", "4"], "--clients"),
        (["compare", "--method", "moon"], "--methods"),
        (["deploy", "local", "--client", "3"], "--clients"),
    ],
)
def test_a_typo_is_told_what_may_be_meant(run, words, meant):
    code, _, err = run(*words)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith(
        f"error: no option {words[-2] if '=' not in words[-1] else '--epsilon'};"
    )
    assert f"did you mean {meant}" in line
    assert line.endswith(" -h")


def test_what_resembles_nothing_gets_the_help_alone(run):
    code, _, err = run("runs", "--colour")
    assert (code, err) == (2, "error: no option --colour; see codream-secure runs -h\n")


def test_every_command_tells_near_names():
    todo = [cli]
    while todo:
        for command in todo.pop().commands.values():
            if hasattr(command, "commands"):
                todo.append(command)
            else:
                assert type(command).__module__ == "codream_secure.cli.help", command.name


def test_presets_are_printed_as_toml_and_can_be_used(run):
    code, out, _ = run("presets", "private")
    assert code == 0
    assert "dp_eps = 8.0" in out
    code, out, _ = run("presets")
    assert re.findall(r"^# --preset (.*)", out, re.MULTILINE) == [
        "digits",
        "small-images",
        "cifar",
        "private",
    ]
    # The command line wins over the file, that over the preset.
    with open("own.toml", "w") as file:  # noqa: PTH123
        file.write("dp_eps = 4.0\nclients = 2\n")
    code, _, err = run("simulate", "--preset", "private", "--config", "own.toml")
    assert (code, "at least 3 clients, not 2" in err) == (2, True)
    code, _, err = run("simulate", "--preset", "photos")
    assert code == 2
    assert "cifar" in err
