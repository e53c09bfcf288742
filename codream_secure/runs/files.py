"""Reads one file of a run folder; what is wrong with it is one line that says what to do."""

from pathlib import Path
from typing import TypeVar

from codream_secure.errors import UserError
from codream_secure.runs.formats import COMPARISON, CONFIG, SUMMARY, FormatError, Summary, parse
from codream_secure.storage.looking import is_file, unreadable

CELLS = "cells"

_T = TypeVar("_T")


def is_cell(folder: Path) -> bool:
    """Tell whether a run folder is that of a cell of a comparison."""
    place = folder.resolve().parent
    return place.name == CELLS and is_file(place.parent / COMPARISON)


def text_of(path: Path) -> str:
    """Return the text of a file, without the byte order mark that an editor may have put there.

    Raises:
        UserError: it cannot be read, or it is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise damaged(path, "it is no text") from None
    except OSError as error:
        raise unreadable(path, error) from None


def read_record(path: Path, kind: type[_T]) -> _T:
    """Return the summary or the comparison that a file holds.

    Raises:
        UserError: the file is damaged, or it was written in another format.
    """
    text = text_of(path)
    try:
        return parse(text, kind)
    except FormatError as error:
        raise UserError(f"{path.parent}: {path.name} has {error}; {_remedy(path.parent)}") from None
    except ValueError as error:
        raise damaged(path, str(error)) from None


def read_summary(folder: Path) -> Summary | None:
    """Return the summary of a run; None if the run was cut off before it wrote one.

    Raises:
        UserError: the file is damaged, or it was written in another format.
    """
    path = folder / SUMMARY
    return read_record(path, Summary) if is_file(path) else None


def damaged(path: Path, reason: str) -> UserError:
    """Return the error that names a damaged file of a run or a comparison."""
    return UserError(f"{path.parent}: {path.name} is damaged ({reason}); {_remedy(path.parent)}")


def _remedy(folder: Path) -> str:
    again = f"run it again with `codream-secure simulate --config {folder / CONFIG}`"
    if is_cell(folder):
        again = "delete it and repeat the `codream-secure compare` that made it"
    elif not (folder / CONFIG).is_file():
        again = "repeat the `codream-secure compare` that made it in a new folder"
    return f"{again}, or leave the folder out"
