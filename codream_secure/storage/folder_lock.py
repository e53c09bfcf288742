"""A folder for one process at a time, and folders with names that nobody else has."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from codream_secure.errors import UserError
from codream_secure.storage.files import PART, make_folder, unwritable

LOCK = ".lock"
_MODE = 0o600


def claim(folder: Path, *, patience: float = 0.0, name: str = LOCK) -> FileLock:
    """Make a folder if it is not there, and take it for this process until ``release``.

    The system frees it when the process ends, however that happens. The lock's file stays.

    Args:
        folder: to write into.
        patience: seconds to wait until another process has left the folder.
        name: of the file that is locked.

    Raises:
        UserError: another process uses the folder, or it cannot be made or locked.
    """
    make_folder(folder)
    lock = FileLock(folder / name, mode=_MODE, thread_local=False)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(
            f"{folder} is in use by another process; stop that one, or use another folder"
        ) from None
    except OSError as error:
        raise unwritable(folder, error) from None
    return lock


@contextmanager
def claimed(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder as `claim` does, inside the block.

    Raises:
        UserError: another process uses the folder, or it cannot be made or locked.
    """
    lock = claim(folder, patience=patience)
    try:
        yield
    finally:
        lock.release()


def new_folder(wanted: Path) -> Path:
    """Make a folder that nobody had made, and return its name: ``wanted``, or with a number.

    Raises:
        WriteError: it cannot be made.
    """
    make_folder(wanted.parent)
    for number in count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise unwritable(path, error) from None
        break
    return path


def is_empty(folder: Path) -> bool:
    """Tell whether a folder is not there or holds nothing but a lock and unfinished files.

    Raises:
        OSError: it cannot be read.
    """
    return not folder.exists() or all(
        path.name == LOCK or path.name.endswith(PART) for path in folder.iterdir()
    )


def check_empty(path: Path) -> None:
    """Refuse a folder for the results of a run that holds something already.

    Raises:
        UserError: it does, or it cannot be read.
    """
    try:
        empty = is_empty(path)
    except OSError as error:
        raise UserError(f"cannot write to --out {path}: {error.strerror}") from None
    if not empty:
        raise UserError(f"--out {path} is not empty; name another folder or empty it")
