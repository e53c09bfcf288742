"""`codream-secure report`: one page about run folders."""

import json
from pathlib import Path

import click

from codream_secure.cli.help import Command
from codream_secure.cli.runs import headline

_PAGE = "report.html"
_EXAMPLES = """\b
Examples:
  codream-secure report runs/20261123-181028-codream-digits
  codream-secure report mine yours --out both.html
  codream-secure report comparisons/20261123-190000 --json
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("run_dirs", metavar="RUN_DIR...", type=Path, nargs=-1, required=True)
@click.option(
    "--out",
    type=Path,
    help=f"the page  [default: RUN_DIR/{_PAGE}, of several folders ./{_PAGE}]",
)
@click.option("--json", "as_json", is_flag=True, help="print what the page says, as JSON")
def report(run_dirs: tuple[Path, ...], out: Path | None, *, as_json: bool) -> None:
    """Write one page about a run or several; a comparison's folder stands for all its runs."""
    from codream_secure.runs.reading import read_all  # noqa: PLC0415

    read_all(run_dirs)  # what is wrong with a folder is told before anything slow is loaded
    from codream_secure.api.report import write_report  # noqa: PLC0415 - matplotlib is slow

    page = write_report(*run_dirs, out=out)
    if as_json:
        told = {
            "page": str(page.path),
            "question": page.question,
            "answer": list(page.sentences),
            "runs": [headline(run) for run in page.runs],
        }
        click.echo(json.dumps(told))
    else:
        click.echo("\n".join(page.sentences))
        click.echo(f"written to {page.path}")
