"""A client's own folder: what must survive a restart is on disk before anything is sent (D5).

`protocols.client.durable` decides what to store and when; this module stores it. Records hold
secrets: only the owner can read the folder, and only one process at a time may use it.
"""

from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from codream_secure.errors import UserError
from codream_secure.storage.files import PART, clean, extend, replace, sync
from codream_secure.storage.folder_lock import claim

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_LOCK = "lock"
_LENGTH = 4  # bytes that hold the length of what was added

_T = TypeVar("_T")


class StateFolder:
    """Named records in one folder; a record is replaced completely or not at all.

    Args:
        path: the folder; it is made if it does not exist, and only the owner may read it.
        patience: seconds to wait until another process has left the folder.

    Attributes:
        answered: by the name of a batch, the last step that was answered in this process.

    Raises:
        UserError: another process uses the folder, or it cannot be made or locked.
    """

    def __init__(self, path: Path, *, patience: float = 0.0) -> None:
        self.path = path
        self.answered: dict[str, int] = {}
        self._ends: dict[str, int] = {}  # bytes of records that are added to
        try:
            path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            path.chmod(_FOLDER_MODE)
            # Two processes that start from one state would answer a request twice, which opens a
            # mask, or charge one privacy budget for two releases.
            self._lock = claim(path, patience=patience, name=_LOCK)
        except OSError as error:
            raise UserError(f"cannot use the state folder {path}: {error.strerror}") from None
        # A process died while it wrote: its secrets must not outlive their key batch.
        clean(path)

    @classmethod
    def existing(cls, path: Path) -> Self:
        """Open a folder that a site has made: for commands of its operator, which make none.

        Raises:
            UserError: there is no such folder, or another process uses it.
        """
        if not path.is_dir():
            raise UserError(
                f"{path} is no state folder: give the one in state=... of --node-config"
            )
        return cls(path)

    def save(self, name: str, data: bytes) -> None:
        """Replace a record; when this returns, the record is on disk and survives a crash.

        Args:
            name: of the record; a plain file name.
            data: the whole record.

        Raises:
            WriteError: it cannot be written; the record before is still there.
        """
        replace(self.path / name, data, mode=_FILE_MODE)

    def load(self, name: str) -> bytes | None:
        """Return the last saved bytes of a record; None if there is no such record."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def load_as(self, name: str, kind: type[_T]) -> _T | None:
        """Return a record that was saved as MessagePack of a type; None if there is none.

        Raises:
            msgspec.DecodeError: it holds something else.
        """
        kept = self.load(name)
        return None if kept is None else msgspec.msgpack.decode(kept, type=kind)

    def lines(self, name: str) -> list[bytes]:
        """Return what was added to a record with `add`, in order; empty if there is none.

        What a process that died left unfinished at its end is not there: nothing was sent after it.
        """
        kept, at, found = self.load(name) or b"", 0, []
        while size := int.from_bytes(kept[at : at + _LENGTH], "big"):
            if at + _LENGTH + size > len(kept):
                break
            found.append(kept[at + _LENGTH : at + _LENGTH + size])
            at += _LENGTH + size
        self._ends[name] = at
        return found

    def add(self, name: str, data: bytes) -> None:
        """Add to a record of `lines` without writing it again; on disk when this returns.

        Args:
            name: of the record; a plain file name.
            data: 1 byte at least, below 2^32.

        Raises:
            WriteError: it cannot be written; the record is as before.
        """
        if name not in self._ends:
            self.lines(name)
        line = len(data).to_bytes(_LENGTH, "big") + data
        self.extend(name, line, self._ends[name])
        self._ends[name] += len(line)

    def extend(self, name: str, data: bytes, end: int) -> None:
        """Write bytes behind the first ``end`` of a record, see `files.extend`."""
        extend(self.path / name, data, end=end, mode=_FILE_MODE)

    def erase(self, name: str) -> None:
        """Remove a record if it exists. Flash memory may keep its blocks for some time."""
        self._ends.pop(name, None)
        (self.path / name).unlink(missing_ok=True)
        sync(self.path)

    def names(self) -> tuple[str, ...]:
        """Return the names of all complete records."""
        files = (path.name for path in self.path.iterdir())
        return tuple(sorted(n for n in files if n != _LOCK and not n.endswith(PART)))

    def close(self) -> None:
        """Release the folder for other processes."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
