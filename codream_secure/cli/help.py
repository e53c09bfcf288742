"""Help that explains a dozen options and names the rest, and near names for what does not exist."""

import textwrap
from typing import Any

import click
import cloup
from cloup.formatting import ensure_is_cloup_formatter

from codream_secure.config.aliases import near, option
from codream_secure.errors import UserError

_ALL = "codream_secure.help_all"


class Command(cloup.Command):
    """A command whose options in groups are named by `--help` and explained by `--help-all`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as cloup has them
        super().__init__(*args, **kwargs)
        if self.option_groups:
            words = ["--help-all"]
            shown = click.Option(
                words,
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_show_all,
                help="show all options with what they do, and exit",
            )
            self.params.append(shown)
            self.ungrouped_options.append(shown)

    def format_params(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options without a group, then the groups."""
        formatter = ensure_is_cloup_formatter(formatter)
        first = self.get_default_option_group(ctx, is_the_only_visible_option_group=True)
        sections = [self.make_option_group_help_section(first, ctx)]
        if ctx.meta.get(_ALL):
            sections += [self.make_option_group_help_section(g, ctx) for g in self.option_groups]
        formatter.write_many_sections(sections, aligned=True)
        if self.option_groups and not ctx.meta.get(_ALL):
            formatter.write("\nMore options; --help-all says what they do:\n")
            formatter.write("".join(_names(g, formatter.width) for g in self.option_groups))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line; of an option that does not exist, tell which may be meant."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [name for param in self.params for name in param.opts if name[:2] == "--"]
            raise UserError(_no_such(error.option_name, known, ctx.command_path)) from None


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def _no_such(asked: str, known: list[str], command: str) -> str:
    """Return what is said of an option that does not exist."""
    names = [name[2:].replace("-", "_") for name in known]
    meant = " or ".join(map(option, near(asked.lstrip("-").replace("-", "_"), names)))
    return (
        f"no option {asked}; " + (f"did you mean {meant}? " if meant else "") + f"see {command} -h"
    )


def _show_all(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001
    """Print the whole help; click calls this with a value for every flag."""
    if value:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _names(group: cloup.OptionGroup, width: int) -> str:
    """Return a group's title and the names of its options; no name is broken at its dashes."""
    names = ", ".join(one.opts[0] for one in group.options if not one.hidden)
    return (
        textwrap.fill(
            f"{group.title}: {names}",
            width,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
        + "\n"
    )
