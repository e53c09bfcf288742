"""`codream-secure audit`: test the masking protocol and the privacy claims on this machine."""

import json
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.text import Text

from codream_secure.audit.attacked import attacked
from codream_secure.cli.exit_codes import EXIT_CLAIM_FAILED
from codream_secure.cli.help import Group
from codream_secure.cli.options import number, tell_classes
from codream_secure.config import bounds
from codream_secure.config.early import check_early
from codream_secure.config.rules import resolve
from codream_secure.errors import UserError
from codream_secure.report.text import stderr, stdout

if TYPE_CHECKING:
    from protocols.audit.run import Result

INSTALL = "pip install 'codream-secure[audit]'"

_EXAMPLES = """\b
Examples:
  codream-secure audit protocol
  codream-secure audit protocol --examples 1000 --json
"""

_PRIVACY_EXAMPLES = """\b
Examples:
  codream-secure audit privacy
  codream-secure audit privacy runs/private --shadows 16
  codream-secure audit privacy --only sums --only steps --json
"""


@click.group(cls=Group)
def audit() -> None:
    """Check on this machine that the promises hold."""


@audit.command(epilog=_EXAMPLES)
@number("--examples", of=bounds.Cases, told="cases per property", default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print JSON and nothing else")
def protocol(*, examples: int, as_json: bool) -> None:
    """Check the properties of the masking protocol, with fresh random cases.

    Exit codes: 0 all hold; 1 one does not; 2 bad input, or Hypothesis is not installed.
    """
    if find_spec("hypothesis") is None:
        raise UserError(f"the audit needs Hypothesis: {INSTALL}")
    from protocols.audit import run as audits  # noqa: PLC0415 - needs Hypothesis

    console = stdout(quiet=as_json)
    began, results = time.perf_counter(), []
    for result in audits.run(examples):
        results.append(result)
        console.print(_line(result), soft_wrap=True)
    failed = [result.name for result in results if result.outcome is None]
    seconds = time.perf_counter() - began
    if as_json:
        properties = [asdict(result) for result in results]
        click.echo(json.dumps({"properties": properties, "failed": failed, "seconds": seconds}))
    held = len(results) - len(failed)
    console.print(f"{held} of {len(results)} properties hold; {seconds:.0f} seconds")
    sys.exit(EXIT_CLAIM_FAILED if failed else 0)


def _line(result: "Result") -> Text:
    if result.outcome is None:
        return Text.assemble(("FAILED", "red"), f"  {result.name:17} {result.failure}")
    counts = f"{result.outcome.examples:6,} examples {result.outcome.checks:7,} checks"
    return Text.assemble(("ok", "green"), f"      {result.name:17} {counts}")


@audit.command(epilog=_PRIVACY_EXAMPLES)
@click.argument("run_dir", type=Path, required=False)
@click.option("--dataset", help="attack a federation on this data  [default: digits]")
@number("--clients", of=bounds.Roster, told="of that federation  [default: 10]")
@number("--dp-eps", of=bounds.Epsilon, told="its epsilon  [default: 8]")
@number(
    "--shadows",
    of=bounds.Shadows,
    told="runs for membership inference, with DP and without",
    default=8,
    show_default=True,
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["sums", "steps", "one-run", "membership", "inversion", "differences"]),
    help="a part of the audit; may be given again  [default: all]",
)
@click.option(
    "--out",
    type=Path,
    help="folder for audit.json and the shadows' results  [default: RUN_DIR, or none]",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON and nothing else")
def privacy(
    run_dir: Path | None,
    *,
    dataset: str | None,
    clients: int | None,
    dp_eps: float | None,
    shadows: int,
    only: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Attack what is private: the mechanisms, and a federation as in RUN_DIR or on --dataset.

    Exit codes: 0 no claim is refuted; 1 one is; 2 bad input.
    """
    given = {"dataset": dataset, "clients": clients, "dp_eps": dp_eps}
    config = attacked(run_dir, {k: v for k, v in given.items() if v is not None})
    check_early(resolve(config))
    if not as_json:
        tell_classes(config.data.dataset)
    # torch takes seconds to import: only now, so that --help and bad options answer at once.
    from codream_secure.api.audit import carry_out  # noqa: PLC0415
    from codream_secure.report.progress import LiveProgress  # noqa: PLC0415

    with LiveProgress(stderr(quiet=as_json)) as progress:
        result = carry_out(
            config,
            None,
            parts=only,
            shadows=shadows,
            out=out or run_dir,
            run=run_dir,
            progress=progress,
        )
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        from codream_secure.report.table import audit_table  # noqa: PLC0415

        stdout().print(audit_table(result))
    sys.exit(EXIT_CLAIM_FAILED if result.violated else 0)
