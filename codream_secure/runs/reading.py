"""Finds run folders and reads them back as `RecordedRun`."""

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from codream_secure.config.aliases import current_names
from codream_secure.errors import UserError
from codream_secure.runs.comparison_folder import cells, is_comparison, is_run, unreadable_cells
from codream_secure.runs.files import CELLS, damaged, is_cell, read_summary, text_of
from codream_secure.runs.formats import CONFIG, METRICS, Row, Summary, parse_row
from codream_secure.runs.recorded_run import ConfigFile, RecordedRun, RoundFigures, has_one_model
from codream_secure.storage.looking import is_folder, listed


def find(folder: Path) -> list[Path]:
    """Return the run folders in a folder, those of comparisons included.

    A folder that cannot be read is among them: `read` says what is wrong with it.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    if not is_folder(folder):
        raise UserError(
            f"{folder}: there is no such folder; `codream-secure simulate` makes runs, "
            "or name the folder they are in"
        )
    found: list[Path] = []
    for path in (folder, *(p for p in listed(folder) if p.name != CELLS and p.is_dir())):
        try:
            found += [path] if is_run(path) else []
            found += sorted(cells(path) + unreadable_cells(path)) if is_comparison(path) else []
        except UserError:
            found.append(path)
    return found


def read_all(folders: Iterable[Path]) -> list[RecordedRun]:
    """Read run folders; a comparison stands for all its cells, a folder counts once.

    Raises:
        UserError: a folder is no run, is damaged or has another format, or the runs cannot be
            compared.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        inner = cells(folder) if is_comparison(folder) else [folder]
        if not inner:
            raise UserError(
                f"{folder}: none of its cells is finished; repeat the `codream-secure compare` "
                "that made it"
            )
        for path in inner:
            paths.setdefault(path.resolve(), path)
    runs = [read(path) for path in paths.values()]
    _check_comparable(runs)
    return runs


def read(folder: Path) -> RecordedRun:
    """Read one run folder.

    Raises:
        UserError: it is no run, or a file in it is damaged or has another format.
    """
    if not is_folder(folder):
        raise UserError(f"{folder}: there is no such folder; name the folder of a run")
    if not is_run(folder):
        if is_comparison(folder):
            listed(folder / CELLS)  # that is what could not be read
        raise UserError(
            f"{folder}: this is not the folder of a run (it needs {CONFIG} and {METRICS}); "
            "name what `codream-secure simulate --out` wrote"
        )
    text = text_of(folder / CONFIG)
    try:
        options = current_names(tomllib.loads(text))
        config = msgspec.convert(options, ConfigFile)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise damaged(folder / CONFIG, "it is no TOML") from None
    except msgspec.ValidationError as error:
        raise damaged(folder / CONFIG, str(error)) from None
    summary = read_summary(folder)
    method = _method(folder, summary, config)
    one_model = has_one_model(method)
    return RecordedRun(
        folder=folder,
        method=method,
        config_text=text,
        options=options,
        config=config,
        summary=summary,
        rounds_done=tuple(RoundFigures.of(row, one_model=one_model) for row in read_rows(folder)),
        cell=is_cell(folder),
    )


def read_rows(folder: Path) -> list[Row]:
    """Return the rows of a run's metrics.jsonl, one a round.

    A last line without its end was cut off by a crash and is left out.

    Raises:
        UserError: the file cannot be read, or a line is no row.
    """
    path = folder / METRICS
    rows = []
    for number, line in enumerate(text_of(path).split("\n")[:-1], 1):
        try:
            rows.append(parse_row(line))
        except ValueError as error:
            raise damaged(path, f"line {number} is no round: {error}") from None
    return rows


def _method(folder: Path, summary: Summary | None, config: ConfigFile) -> str:
    """Return a run's method; the settings of a baseline's cell do not know it."""
    if summary:
        return summary.method
    if is_cell(folder):
        return folder.resolve().name.rpartition("-seed")[0]
    return config.method or "unknown method"


def _check_comparable(runs: Sequence[RecordedRun]) -> None:
    for name in ("dataset", "test_digest"):
        first: RecordedRun | None = None
        for run in runs:
            if getattr(run, name) is None:
                continue
            first = first or run
            if getattr(run, name) != getattr(first, name):
                raise UserError(
                    f"{first.folder}, {run.folder}: these runs were tested on different data and "
                    "cannot be compared"
                )
