"""Standard output and error that cannot end a command.

What is printed comes after the work. A terminal that knows no Greek, a reader that has left or a
full disk behind a redirection may spoil the text, never the run or its exit code.
"""

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


class Guarded:
    """A stream, of text or bytes, that drops what nobody takes any more.

    Args:
        stream: an open stream with a file descriptor.
        complain: gets the reason once, unless a reader of a pipe has left.
    """

    def __init__(self, stream: IO[Any], complain: Callable[[str], object]) -> None:
        self._stream = stream
        self._complain = complain

    def write(self, data: str | bytes) -> int:
        """Write, or drop, all of it."""
        self._try(lambda: self._stream.write(data))
        return len(data)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._try(self._stream.flush)

    @property
    def buffer(self) -> "Guarded":
        """The bytes below a text; click writes there if the terminal knows ASCII only."""
        return Guarded(self._stream.buffer, self._complain)  # type: ignore[attr-defined]

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            # What is buffered would fail again when the process ends, with an exit code of its own.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            if error.errno != errno.EPIPE:
                self._complain(error.strerror or str(error))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


def guard() -> None:
    """Make standard output and error of this process such streams.

    Characters that a terminal lacks become question marks. A stream that was closed before the
    program began goes nowhere. A warning of this package is one line, without its source.
    """
    warnings.formatwarning = _one_line
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif type(stream) is io.TextIOWrapper:  # not what a test puts there
            if name == "stdout":
                stream.reconfigure(errors="replace")
            setattr(sys, name, Guarded(stream, _tell if name == "stdout" else _nothing))


_format = warnings.formatwarning


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning: for users one line, for developers what Python shows."""
    if category is UserWarning and "codream_secure" in Path(filename).parts:
        return f"warning: {message}\n"
    return _format(message, category, filename, lineno, line)


def _tell(reason: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"warning: standard output cannot be written: {reason}\n")


def _nothing(_reason: str) -> None:
    """Where standard error fails there is nobody to tell."""
