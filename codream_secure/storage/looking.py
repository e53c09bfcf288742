"""Whether a file or a folder is there; one that may not be looked at is not taken for absent."""

import errno
import os
import stat
from pathlib import Path

from codream_secure.errors import UserError

_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def is_file(path: Path) -> bool:
    """Tell whether there is a file.

    Raises:
        UserError: this may not be known.
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Tell whether there is a folder.

    Raises:
        UserError: this may not be known.
    """
    return stat.S_ISDIR(_mode(path))


def listed(folder: Path) -> list[Path]:
    """Return what is in a folder, by name.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sorted(folder / name for name in os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise unreadable(folder, error) from None


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error of a path that cannot be read."""
    return UserError(f"{path}: cannot be read: {error.strerror or error}")


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in _ABSENT:
            return 0
        raise unreadable(path, error) from None
    except ValueError:  # a null character
        return 0
