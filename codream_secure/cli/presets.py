"""`codream-secure presets`: show the settings that `--preset` stands for."""

import click

from codream_secure.cli.help import Command
from codream_secure.config.presets import PRESETS, preset_text

_EXAMPLES = """\b
Examples:
  codream-secure presets
  codream-secure presets cifar
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("name", type=click.Choice(PRESETS), required=False)
def presets(name: str | None) -> None:
    """Print the preset NAME, or all, as TOML: a start for a file of one's own (--config)."""
    for one in PRESETS if name is None else (name,):
        if name is None:
            click.echo(f"# --preset {one}")
        click.echo(preset_text(one))
