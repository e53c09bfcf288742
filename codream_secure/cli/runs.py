"""`codream-secure runs`: a list of run folders."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codream_secure.cli.help import Command
from codream_secure.errors import UserError

if TYPE_CHECKING:
    from codream_secure.runs.recorded_run import RecordedRun

_EXAMPLES = """\b
Examples:
  codream-secure runs
  codream-secure runs comparisons --json
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("folder", type=Path, default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="print JSON and nothing else")
def runs(folder: Path, *, as_json: bool) -> None:
    """List the runs in FOLDER (default: runs), and those of comparisons."""
    from codream_secure.runs.reading import find, read  # noqa: PLC0415

    found: list[RecordedRun] = []
    damaged: dict[Path, UserError] = {}
    for path in find(folder):
        try:
            found.append(read(path))
        except UserError as error:
            damaged[path] = error
    if as_json:
        click.echo(json.dumps([headline(run) for run in found]))
    elif found or damaged:
        _print(found, list(damaged), folder)
    else:
        click.echo(f"no runs in {folder}")
    wrong = list(damaged.values())
    for told in wrong[:-1]:
        click.echo(f"error: {told}", err=True)
    if wrong:
        raise wrong[-1]


def headline(run: "RecordedRun") -> dict[str, Any]:
    """Return a run's headline numbers in JSON's own types; null is unknown."""
    return {
        "folder": str(run.folder),
        "method": run.method,
        "dataset": run.dataset,
        "partition": run.partition,
        "clients": run.clients,
        "seed": run.seed,
        "accuracy": run.accuracy,
        "accuracy_std": run.spread,
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "private": run.private,
        "epsilon": run.epsilon,
        "rounds_finished": run.rounds_finished,
        "rounds": run.rounds,
        "seconds": run.seconds,
        "iterations": run.iterations,
    }


def _print(found: "list[RecordedRun]", damaged: list[Path], folder: Path) -> None:
    from rich.table import Table  # noqa: PLC0415

    from codream_secure.report.text import (  # noqa: PLC0415
        number,
        percent,
        size,
        stdout,
    )

    table = Table()
    for name in ("run", "method", "dataset", "partition", "clients", "accuracy"):
        table.add_column(name, overflow="fold")
    for name in ("up", "down", "ε", "rounds"):
        table.add_column(name, no_wrap=True)
    for run in found:
        none = "none" if run.private is False else "-"
        cells = (
            str(run.folder.relative_to(folder)),
            run.method,
            run.dataset or "-",
            run.partition or "-",
            number(run.clients),
            percent(run.accuracy),
            size(run.bytes_up),
            size(run.bytes_down),
            none if run.epsilon is None else f"{run.epsilon:.3g}",
            str(run.rounds_finished) + ("" if run.rounds is None else f"/{run.rounds}"),
        )
        table.add_row(*cells)
    for path in damaged:
        table.add_row(str(path.relative_to(folder)), "cannot be read", *["-"] * 8)
    stdout().print(table)
