"""Writes command lines of `codream-secure`."""

import shlex
from collections.abc import Mapping


def command_line(command: str, options: Mapping[str, object]) -> str:
    """Return ``codream-secure`` with a subcommand and options, quoted for a shell.

    Args:
        command: the subcommand, for instance "simulate".
        options: by flat name. True and False are flags; an option that is None is left out.
    """
    words = ["codream-secure", command]
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", str(value)]
    return shlex.join(words)
