"""What a command says about a fault of its own: one line, and a file with the details."""

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from codream_secure._version import __version__
from codream_secure.errors import WriteError
from codream_secure.storage.files import replace

_LIBRARIES = ("torch", "numpy", "opacus", "click", "rich")
_PACKAGES = ("codream_secure", "protocols")
_MODE = 0o600
_DEEPEST = 40  # frames of one error that are written; the others of a recursion say the same


def report(error: BaseException, names: Sequence[str]) -> str:
    """Write the details of a fault into a file, and return the line that says where they are.

    The file goes into the current folder, or else into the folder for temporary files.

    Args:
        error: that nothing handled.
        names: of the command and its options.
    """
    text = details(error, names)
    name = f"codream-secure-crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    where = "shown by the same command with --debug"
    for path in (Path(name), Path(tempfile.gettempdir()) / name):
        with suppress(WriteError):
            replace(path, text, mode=_MODE)
            where = f"in {path}"
            break
    return f"error: a fault of codream-secure itself ({type(error).__name__}); details are {where}"


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that this machine has too little memory."""
    if isinstance(error, MemoryError):
        return True
    # torch has a class for this on an accelerator only.
    words = ("DefaultCPUAllocator", "out of memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def details(error: BaseException, names: Sequence[str]) -> str:
    """Return what helps to find a fault, without any data of the user's.

    Messages of errors are left out, and so are values of options and names of folders: they may
    quote a pixel, a label, a name or a path.
    """
    versions = [f"codream-secure {__version__}", f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    lines = [
        "A fault of codream-secure. This file holds no data, no paths and no messages of errors;",
        "the same command with --debug shows those.",
        "",
        ", ".join(versions),
        f"{platform.system()} {platform.machine()}",
        f"options: {' '.join(names)}",
    ]
    for kind, frames in _chain(error):
        lines += ["", kind, *frames]
    return "\n".join(lines) + "\n"


def _chain(error: BaseException | None) -> Iterator[tuple[str, list[str]]]:
    """Yield each error with its frames, the one that ended the command first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = traceback.extract_tb(error.__traceback__)
        yield (
            type(error).__name__,
            [f"  {_place(f.filename)}:{f.lineno} {f.name}" for f in frames[-_DEEPEST:]],
        )
        error = error.__cause__ or error.__context__


def _place(filename: str) -> str:
    """Return a file by its package, without the folders in which that is installed."""
    parts = Path(filename).parts
    for at, part in enumerate(parts):
        if part in ("site-packages", "dist-packages"):
            return "/".join(parts[at + 1 :])
    for package in _PACKAGES:
        if Path(filename).is_relative_to(_root() / package):
            return Path(filename).relative_to(_root()).as_posix()
    if Path(filename).is_relative_to(sys.base_prefix):
        return parts[-1]
    return "(a module of the user's)"


def _root() -> Path:
    return Path(__file__).parents[2]
