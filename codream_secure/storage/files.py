"""The one place that writes files: each is the old one or the new one at every moment.

A file is written under another name, brought to the disk, and renamed. Lines are appended whole, or
a reader leaves the last one out. So every moment at which a process can end leaves a folder that
can be read. A test checks that nothing else in the package writes.
"""

import errno
import io
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codream_secure.errors import WriteError

# What a process that died while it wrote leaves behind ends so.
PART = ".part"
_MODE = 0o666  # before the umask
_FULL = (errno.ENOSPC, errno.EDQUOT)


def replace(path: Path, data: bytes | str, *, mode: int = _MODE) -> None:
    """Replace a file; when this returns, the new one is on disk and survives a power cut.

    Args:
        path: of the file, in a folder that exists. A link stays a link. What is no plain file,
            such as a pipe, is written to as it is.
        data: all of it; text becomes UTF-8.
        mode: of a new file, before the umask.

    Raises:
        WriteError: the file cannot be written; the old one is still there.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        place = path.resolve()
        if place.exists() and not place.is_file():
            _write(place, raw, os.O_WRONLY, mode)
            return
        # Two processes that write the same page must not write into one unfinished file.
        part = place.with_name(f"{place.name}.{os.getpid()}{PART}")
        try:
            _write(part, raw, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            os.replace(part, place)  # noqa: PTH105 - as all calls here, so that tests can fail them
        except BaseException:
            with suppress(OSError):
                os.unlink(part)  # noqa: PTH108
            raise
        sync(place.parent)
    except OSError as error:
        raise unwritable(path, error) from None


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the content of an npz file that holds these arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def append(path: Path, line: str) -> None:
    """Append a line, newline included; on an error the file stays as it was.

    Raises:
        WriteError: it cannot be written.
    """
    _extend(path, line.encode(), None, _MODE)


def extend(path: Path, data: bytes, *, end: int, mode: int = _MODE) -> None:
    """Write bytes behind the first ``end`` of a file; when this returns, they are on disk.

    What a process that died left behind ``end`` is cut off. On an error the file has ``end`` bytes.

    Args:
        path: of the file, in a folder that exists; with an ``end`` of 0 it is made.
        data: what is added.
        end: bytes of the file that are kept.
        mode: of a new file, before the umask.

    Raises:
        WriteError: it cannot be written.
    """
    _extend(path, data, end, mode)
    if not end:
        try:
            sync(path.parent)
        except OSError as error:
            raise unwritable(path, error) from None


def _extend(path: Path, data: bytes, end: int | None, mode: int) -> None:
    """Append to the first ``end`` bytes of a file, or to all of them (None)."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
        try:
            size = os.fstat(descriptor).st_size
            if end is not None and end < size:
                os.ftruncate(descriptor, end)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(descriptor, size if end is None else end)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unwritable(path, error) from None


def shorten(path: Path, size: int) -> None:
    """Cut a file off after ``size`` bytes.

    Raises:
        WriteError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unwritable(path, error) from None


def replace_folder(path: Path, content: Mapping[str, bytes]) -> None:
    """Replace a folder of files, by name (`a/b` lies in a folder `a`); all of them or none.

    Raises:
        WriteError: it cannot be written; then neither the old nor the new one is there.
    """
    part = path.with_name(path.name + PART)
    try:
        remove(path)
        remove(part)
        os.mkdir(part)  # noqa: PTH102
        for name, data in content.items():
            place = part / name
            if not place.parent.is_dir():
                os.mkdir(place.parent)  # noqa: PTH102
            _write(place, data, os.O_WRONLY | os.O_CREAT, _MODE)
        for folder in {(part / name).parent for name in content} | {part}:
            sync(folder)
        os.rename(part, path)  # noqa: PTH104
        sync(path.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from None
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there; a folder is gone at once, not file by file.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir():
        gone = path.with_name(path.name + PART + PART)
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(path, gone)  # noqa: PTH104
        shutil.rmtree(gone)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if it is not there.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None


def clean(folder: Path) -> None:
    """Remove what processes that died while they wrote left in a folder.

    Raises:
        OSError: it cannot be removed.
    """
    for left in folder.glob("*" + PART):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk.

    Raises:
        OSError: the disk fails.
    """
    if (flag := getattr(os, "O_DIRECTORY", None)) is None:
        return  # Windows does not open folders
    descriptor = os.open(folder, os.O_RDONLY | flag)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> WriteError:
    """Return the error of a path that cannot be written."""
    full = "; make room on that disk" if error.errno in _FULL else ""
    return WriteError(f"cannot write to {path}: {error.strerror or error}{full}")


def _write(path: Path, data: bytes, flags: int, mode: int) -> None:
    descriptor = os.open(path, flags, mode)
    try:
        _write_all(descriptor, data)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
