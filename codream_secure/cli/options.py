"""The settings of a run as options of a command."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import cloup
from msgspec import inspect

from codream_secure.config.aliases import ALIASES, current_names, option
from codream_secure.config.bounds import bounds_of, checked
from codream_secure.config.presets import PRESETS, preset
from codream_secure.config.settings import Setting, described_default, settings
from codream_secure.data.names import DATASET_NAMES
from codream_secure.errors import UserError
from codream_secure.storage.looking import is_folder
from codream_secure.storage.toml import load_toml

Command = Callable[..., None]

# These come first in the help; the other settings stand in groups.
_FIRST = ("dataset", "clients", "partition", "models", "method", "rounds", "dp_eps", "seed")
_TITLES = {
    "data": "Data",
    "model": "Models",
    "dream": "Dreams",
    "learning": "Learning",
    "messenger": "Common model (codream-messenger)",
    "secure": "Sums under masks",
    "privacy": "Differential privacy",
    "run": "Computing",
}


def _as_option(
    setting: Setting, name: str, group: cloup.OptionGroup | None, *, hidden: bool = False
) -> Callable[[Any], Any]:
    help_text = setting.help
    default = described_default(setting)
    told = [f"default: {default}" if default else "", setting.bounds]
    if any(told):
        help_text += f"  [{'; '.join(filter(None, told))}]"
    words, kind = option(name), click.Choice(setting.choices) if setting.choices else setting.kind
    if setting.kind is bool:
        words, kind = f"{words}/--no-{words.removeprefix('--')}", bool
    return cloup.option(
        words, name, type=kind, default=None, help=help_text, hidden=hidden, group=group
    )


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number within the bounds of a type of `config.bounds`."""

    def __init__(self, allowed: Any) -> None:  # noqa: ANN401 - an annotated type
        found = inspect.type_info(allowed)
        self.kind = int if isinstance(found, inspect.IntType) else float
        self.name, self.bounds = self.kind.__name__.replace("int", "integer"), bounds_of(found)
        self._allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Return the number, or end with one line that says what it must be."""
        number = (click.INT if self.kind is int else click.FLOAT).convert(value, param, ctx)
        try:
            return checked(number, self.kind, self._allowed, self.bounds)
        except ValueError as error:
            name = param.opts[0] if param else "it"
            raise UserError(f"{name} must be {error}, not {number}") from None


def number(*names: str, of: Any, told: str, **more: Any) -> Callable[[Any], Any]:  # noqa: ANN401
    """Return an option that takes a number.

    Args:
        names: of the option.
        of: its type, one of `config.bounds`.
        told: its help, to which the bounds are added.
        more: what `cloup.option` takes.
    """
    kind = Number(of)
    return cloup.option(*names, type=kind, help=f"{told}  [{kind.bounds}]", **more)


def run_options(without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Return a decorator that gives a command every setting of a run as an option.

    Old names of settings are options too, which no help shows.

    Args:
        without: names of settings that the command fixes itself.
    """

    def decorate(command: Command) -> Command:
        old_names = {new: old for old, new in ALIASES.items()}
        groups = {concern: cloup.OptionGroup(title) for concern, title in _TITLES.items()}
        for setting in reversed(settings()):
            if setting.name in without:
                continue
            group = None if setting.name in _FIRST else groups[setting.concern]
            if old := old_names.get(setting.name):
                command = _as_option(setting, old, group, hidden=True)(command)
            command = _as_option(setting, setting.name, group)(command)
        return command

    return decorate


def sources(command: Command) -> Command:
    """Give a command the options that name settings kept elsewhere: a preset and a file."""
    command = click.option(
        "--config",
        "config_file",
        type=Path,
        help="TOML file with options as keys, underscores for dashes; the command line wins",
    )(command)
    return click.option(
        "--preset",
        type=click.Choice(PRESETS),
        help="settings that go together (`codream-secure presets` shows them); a file and the "
        "command line win",
    )(command)


def given_settings(
    options: Mapping[str, object], config_file: Path | None, preset_name: str | None = None
) -> dict[str, object]:
    """Return the settings that the user gave; the command line wins over the file, that over all.

    An old name of an option is replaced by the current one, with a note on stderr.

    Args:
        options: of the command line, by name; None stands for "not given".
        config_file: TOML with more of them.
        preset_name: a preset with more of them.

    Raises:
        UserError: the file cannot be read, or an option is given under both of its names.
    """
    tell = partial(click.echo, err=True)
    shipped = preset(preset_name) if preset_name else {}
    from_file = current_names(load_toml(config_file) if config_file else {}, tell)
    chosen = current_names({k: v for k, v in options.items() if v is not None}, tell)
    return shipped | from_file | chosen


_NAMED = 20  # classes in a line


def tell_classes(dataset: str) -> None:
    """Say on stderr which folders are the classes of a dataset, if it is a folder of images.

    Raises:
        UserError: the folder cannot be read, or is no dataset.
    """
    if dataset in DATASET_NAMES or not is_folder(Path(dataset)):
        return
    from codream_secure.data.folders import class_names  # noqa: PLC0415 - imports NumPy

    names = class_names(Path(dataset))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    click.echo(f"{len(names)} classes in {dataset}: {', '.join(names[:_NAMED])}{more}", err=True)
