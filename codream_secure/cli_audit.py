"""`codream-secure audit`: check the masking protocol on the user's own machine."""

import json
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec

import click
from rich.console import Console
from rich.markup import escape

from codream_secure.errors import UserError

INSTALL = "pip install 'codream-secure[audit]'"
EXIT_FAILED = 1


_EXAMPLES = """\b
Examples:
  codream-secure audit protocol
  codream-secure audit protocol --examples 1000 --json
"""


@click.group()
def audit() -> None:
    """Check that what is promised holds, here and now."""


@audit.command(epilog=_EXAMPLES)
@click.option(
    "--examples", type=click.IntRange(1), default=100, show_default=True, help="cases per property"
)
@click.option("--json", "as_json", is_flag=True, help="print JSON and nothing else")
def protocol(*, examples: int, as_json: bool) -> None:
    """Check the properties of the masking protocol, with fresh random cases.

    Exit codes: 0 all hold; 1 one does not; 2 bad input, or Hypothesis is not installed.
    """
    if find_spec("hypothesis") is None:
        raise UserError(f"the audit needs Hypothesis: {INSTALL}")
    from protocols.testing import audit as audits  # noqa: PLC0415 - needs Hypothesis

    console = Console(quiet=as_json, highlight=False, soft_wrap=True)
    began, results = time.perf_counter(), []
    for result in audits.run(examples):
        results.append(result)
        if result.outcome is None:
            console.print(f"[red]FAILED[/]  {result.name:17} {escape(result.failure)}")
        else:
            counts = f"{result.outcome.examples:6,} examples {result.outcome.checks:7,} checks"
            console.print(f"[green]ok[/]      {result.name:17} {counts}")
    failed = [result.name for result in results if result.outcome is None]
    seconds = time.perf_counter() - began
    if as_json:
        properties = [asdict(result) for result in results]
        json.dump({"properties": properties, "failed": failed, "seconds": seconds}, sys.stdout)
        click.echo()
    held = len(results) - len(failed)
    console.print(f"{held} of {len(results)} properties hold; {seconds:.0f} seconds")
    sys.exit(EXIT_FAILED if failed else 0)
