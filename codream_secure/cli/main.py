"""The command line: the group of all commands, and the exit code of every error."""

import os
import sys
import traceback

import click

from codream_secure._version import __version__
from codream_secure.cli import crash
from codream_secure.cli.audit import audit
from codream_secure.cli.compare import compare
from codream_secure.cli.deploy import deploy
from codream_secure.cli.exit_codes import EXIT_BAD_INPUT, EXIT_FAULT, EXIT_INTERRUPTED
from codream_secure.cli.predict import export, predict
from codream_secure.cli.presets import presets
from codream_secure.cli.privacy import privacy
from codream_secure.cli.protocol import protocol
from codream_secure.cli.report import report
from codream_secure.cli.runs import runs
from codream_secure.cli.simulate import simulate
from codream_secure.cli.streams import guard
from codream_secure.errors import UserError

_HABITS = """\b
Examples:
  codream-secure simulate --clients 10 --dp-eps 8
  codream-secure compare --methods codream,fedavg,fedavg-secure
  codream-secure report runs/* --out all.html

\b
Exit codes:
  0    done
  1    an audit found something
  2    bad input: one line on stderr says what and how to fix it
  3    done, but not all: too many dropouts, or a method failed
  70   a fault of this program; one line says where the details are (--debug: here)
  130  interrupted; what was computed is on disk

\b
Completion, in bash (zsh_source and fish_source for others):
  eval "$(_CODREAM_SECURE_COMPLETE=bash_source codream-secure)"
"""

_DEBUG = "--debug"
_NO_MEMORY = (
    "error: this machine has too little memory for that; use smaller models or images, or fewer "
    "clients or dreams"
)


class _Commands(click.Group):
    """A group for which a connection that breaks is no reader of a pipe that has left."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; click would end with exit code 1 after such an error."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise RuntimeError("a connection broke") from error


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_HABITS
)
@click.version_option(__version__, prog_name="codream-secure")
@click.option(_DEBUG, is_flag=True, expose_value=False, help="show the traceback of a fault")
def cli() -> None:
    """Learn together through dreams; the server sees nothing but sums."""


cli.add_command(simulate)
cli.add_command(protocol)
cli.add_command(privacy)
cli.add_command(audit)
cli.add_command(compare)
cli.add_command(deploy)
cli.add_command(report)
cli.add_command(runs)
cli.add_command(presets)
cli.add_command(predict)
cli.add_command(export)


def entry_point() -> None:
    """Run the command line; every way to end has its exit code."""
    guard()
    # The kernel of a notebook hands its backend down; matplotlib refuses to be imported with a name
    # that it does not know, and pictures are drawn without one.
    os.environ.pop("MPLBACKEND", None)
    words = [word for word in sys.argv[1:] if word != _DEBUG]
    debug = len(words) + 1 < len(sys.argv)
    sys.exit(_run(words, debug=debug))


def _names(words: list[str]) -> list[str]:
    """Return the names of commands and options on a command line, without any value."""
    names: list[str] = []
    known = cli.commands
    for word in words:
        if word.startswith("--"):
            names.append(word.partition("=")[0])
        elif word in known:
            names.append(word)
            known = getattr(known[word], "commands", {})
    return names


def _one_line(error: UserError) -> str:
    """Return an error without what moves a terminal: names of files may hold any character."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))


def _run(words: list[str], *, debug: bool) -> int:
    """Run a command and return its exit code."""
    code = EXIT_BAD_INPUT
    try:
        code = int(cli.main(words, prog_name="codream-secure", standalone_mode=False) or 0)
    except UserError as error:
        click.echo(f"error: {_one_line(error)}", err=True)
    except click.ClickException as error:
        error.show()
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__ or error, KeyboardInterrupt):
            click.echo("interrupted; what was written is whole", err=True)
        code = EXIT_INTERRUPTED
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the last place: what comes here is our fault
        if crash.out_of_memory(error):
            click.echo(_NO_MEMORY, err=True)
        else:
            code = EXIT_FAULT
            if debug:
                traceback.print_exc()
            else:
                click.echo(crash.report(error, _names(words)), err=True)
    return code
