"""A client's own folder: what must survive a restart is on disk before anything is sent (D5).

`protocols.client.durable` decides what to store and when; this module stores it. Records hold
secrets: only the owner can read the folder, and only one process at a time may use it.
"""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from codream_secure.errors import UserError

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_PAUSE = 0.1


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
        try:
            path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            path.chmod(_FOLDER_MODE)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, _FILE_MODE)
        except OSError as error:
            raise UserError(f"cannot use the state folder {path}: {error.strerror}") from None
        until = time.monotonic() + patience
        while not self._locked():
            if time.monotonic() < until:
                time.sleep(_PAUSE)
                continue
            os.close(self._lock)
            # Two processes that start from one state would answer a request twice, which opens a
            # mask, or charge one privacy budget for two releases.
            raise UserError(
                f"the state folder {path} is in use by another process; stop that one, "
                "or use another folder"
            )
        for unfinished in path.glob("*.new"):
            # A process died while it wrote: its secrets must not outlive their key batch.
            unfinished.unlink()

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

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def save(self, name: str, data: bytes) -> None:
        """Replace a record; when this returns, the record is on disk and survives a crash.

        Args:
            name: of the record; a plain file name.
            data: the whole record.
        """
        temporary = self.path / f"{name}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / name)
        self._sync()

    def load(self, name: str) -> bytes | None:
        """Return the last saved bytes of a record; None if there is no such record."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def erase(self, name: str) -> None:
        """Remove a record if it exists. Flash memory may keep its blocks for some time."""
        (self.path / name).unlink(missing_ok=True)
        self._sync()

    def names(self) -> tuple[str, ...]:
        """Return the names of all complete records."""
        files = (path.name for path in self.path.iterdir())
        return tuple(sorted(n for n in files if n != "lock" and not n.endswith(".new")))

    def close(self) -> None:
        """Release the folder for other processes."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
