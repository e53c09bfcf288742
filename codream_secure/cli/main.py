"""The command line: the group of all commands, and the exit code of every error."""

import sys

import click

from codream_secure._version import __version__
from codream_secure.cli.audit import audit
from codream_secure.cli.compare import compare
from codream_secure.cli.deploy import deploy
from codream_secure.cli.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from codream_secure.cli.privacy import privacy
from codream_secure.cli.protocol import protocol
from codream_secure.cli.report import report
from codream_secure.cli.runs import runs
from codream_secure.cli.simulate import simulate
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
  130  interrupted; what was computed is on disk

\b
Completion, in bash (zsh_source and fish_source for others):
  eval "$(_CODREAM_SECURE_COMPLETE=bash_source codream-secure)"
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_HABITS)
@click.version_option(__version__, prog_name="codream-secure")
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


def entry_point() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        sys.exit(cli.main(prog_name="codream-secure", standalone_mode=False))
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            click.echo("interrupted; what was written is whole", err=True)
        sys.exit(EXIT_INTERRUPTED)
