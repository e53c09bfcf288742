"""`codream-secure report`: one page about run folders."""

import json
import shlex
from contextlib import nullcontext
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
    from codream_secure.report import drawing  # noqa: F401, PLC0415 - a bad matplotlibrc is told
    from codream_secure.report.page import write_page  # noqa: PLC0415 - matplotlib is slow
    from codream_secure.runs.comparison_folder import is_comparison, is_run  # noqa: PLC0415
    from codream_secure.runs.reading import read_all  # noqa: PLC0415
    from codream_secure.storage.folder_lock import claimed  # noqa: PLC0415

    runs = read_all(run_dirs)
    path = out or (run_dirs[0] / _PAGE if len(run_dirs) == 1 else Path(_PAGE))
    ours = is_run(path.parent) or is_comparison(path.parent)
    with claimed(path.parent) if ours else nullcontext():
        answer = write_page(run_dirs, path, _command(run_dirs, out))
    if as_json:
        told = {
            "page": str(path),
            "question": answer.question,
            "answer": list(answer.sentences),
            "runs": [headline(run) for run in runs],
        }
        click.echo(json.dumps(told))
    else:
        click.echo("\n".join(answer.sentences))
        click.echo(f"written to {path}")


def _command(run_dirs: tuple[Path, ...], out: Path | None) -> str:
    """Return the command that makes one folder again, or the page of several."""
    from codream_secure.runs.comparison_folder import rerun  # noqa: PLC0415

    if len(run_dirs) == 1:
        return rerun(run_dirs[0])
    words = ["codream-secure", "report", *map(str, run_dirs)]
    return shlex.join([*words, "--out", str(out)] if out else words)
