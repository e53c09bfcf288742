"""The settings of a run as options of a command."""

from collections.abc import Callable, Collection
from typing import Any

import click

from codream_secure.config.rules import described_default
from codream_secure.config.settings import FORMER_NAMES, Setting, settings

Command = Callable[..., None]


def _as_option(setting: Setting) -> Callable[[Any], Any]:
    name = setting.name.replace("_", "-")
    help_text = setting.help
    if default := described_default(setting):
        help_text += f"  [default: {default}]"
    if setting.kind is bool:
        former = [old.replace("_", "-") for old, new in FORMER_NAMES.items() if new == setting.name]
        flags = [f"--{flag}/--no-{flag}" for flag in (name, *former)]
        return click.option(*flags, setting.name, default=None, help=help_text)
    kind = click.Choice(setting.choices) if setting.choices else setting.kind
    return click.option(f"--{name}", setting.name, type=kind, default=None, help=help_text)


def run_options(without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Return a decorator that gives a command every setting of a run as an option.

    Args:
        without: names of settings that the command fixes itself.
    """

    def decorate(command: Command) -> Command:
        for setting in reversed(settings()):
            if setting.name not in without:
                command = _as_option(setting)(command)
        return command

    return decorate
