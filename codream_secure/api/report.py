"""`write_report`: one page about runs, as a function."""

import shlex
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from codream_secure.errors import UserError
from codream_secure.report import drawing  # noqa: F401 - a bad matplotlibrc is told at once
from codream_secure.report.page import PAGE, write_page
from codream_secure.runs.comparison_folder import is_comparison, is_run, rerun
from codream_secure.runs.reading import read_all
from codream_secure.runs.recorded_run import RecordedRun
from codream_secure.storage.folder_lock import claimed


@dataclass(frozen=True, slots=True)
class Report:
    """A page that was written, and what stands on top of it.

    Attributes:
        path: of the HTML file.
        question: that the page answers.
        sentences: the answer.
        runs: that the page is about.
    """

    path: Path
    question: str
    sentences: tuple[str, ...]
    runs: tuple[RecordedRun, ...]


def write_report(*runs: str | Path, out: str | Path | None = None) -> Report:
    """Write one page about a run or several: what `codream-secure report` does.

    Args:
        runs: folders of runs; a comparison's folder stands for all its runs.
        out: the page; None: `report.html`, of one folder in it, else in the current folder.

    Raises:
        UserError: a folder is no run or is damaged, runs cannot be compared, or the page cannot be
            written.
    """
    if not runs:
        raise UserError("name at least one folder of a run")
    folders = tuple(map(Path, runs))
    found = read_all(folders)
    path = (folders[0] / PAGE if len(runs) == 1 else Path(PAGE)) if out is None else Path(out)
    ours = is_run(path.parent) or is_comparison(path.parent)
    with claimed(path.parent) if ours else nullcontext():
        told = write_page(folders, path, _command(folders, out))
    return Report(path, told.question, told.sentences, tuple(found))


def _command(folders: tuple[Path, ...], out: str | Path | None) -> str:
    """Return the command that makes one folder again, or the page of several."""
    if len(folders) == 1:
        return rerun(folders[0])
    words = ["codream-secure", "report", *map(str, folders)]
    return shlex.join(words if out is None else [*words, "--out", str(out)])
