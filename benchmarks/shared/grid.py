"""A grid of cells: each is run once, and kept where a folder is given.

A cell is a name and its settings; what it left is recorded as JSON. A cell is taken from the folder
under the same name, settings, versions and data file. The grid does not notice that the code has
changed within a version: empty the folder then.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from benchmarks.shared.gates import progress
from codream_secure import __version__
from codream_secure.storage.files import make_folder, replace
from codream_secure.storage.folder_lock import claimed

T = TypeVar("T")
_PATIENCE = 60.0  # seconds; another process holds the folder while it writes one cell


class Cell(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What one cell left.

    Attributes:
        name, settings: of the cell.
        made_with: versions and, of a file of data, its digest: what else decides the result.
        seconds, cpu_seconds: wall time, and CPU time, which other load disturbs least.
        result: None if the cell failed.
        error: why there is no result; "" if there is one.
    """

    name: str
    settings: dict[str, Any]
    made_with: dict[str, str]
    seconds: float
    cpu_seconds: float
    result: T | None = None
    error: str = ""

    def needed(self) -> T:
        """Return the result, and end the script if the cell failed."""
        if self.result is None:
            raise SystemExit(
                f"{self.name} failed: {self.error}; with --keep DIR, go on where it stopped"
            )
        return self.result


class Grid:
    """Runs cells, none twice.

    Args:
        folder: cells are kept here and taken from here; None: none outlives this object.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._known: dict[str, Cell[Any]] = {}
        if folder is not None:
            make_folder(folder)

    def cell(
        self, name: str, settings: Mapping[str, object], make: Callable[[], T], kind: type[T]
    ) -> Cell[T]:
        """Return a cell from memory or from the folder, or make it.

        What goes wrong is the cell's ``error``. A failed cell is not kept and stops no other.
        """
        made_with = _made_with(settings)
        text = msgspec.json.encode([name, settings, made_with], order="deterministic")
        key = f"{_slug(name)}-{hashlib.sha256(text).hexdigest()[:16]}"
        if key not in self._known:
            found = self._kept(key, kind)
            self._known[key] = found or self._made(key, name, settings, made_with, make)
        return self._known[key]

    def result(
        self, name: str, settings: Mapping[str, object], make: Callable[[], T], kind: type[T]
    ) -> T:
        """Return what a cell left, and end the script if it failed."""
        return self.cell(name, settings, make, kind).needed()

    def _kept(self, key: str, kind: type[T]) -> Cell[T] | None:
        path = self._path(key)
        if path is None or not path.exists():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Cell[kind])  # type: ignore[valid-type]
        except msgspec.DecodeError as error:
            progress(f"{path} is not used: {error}")
            return None

    def _made(
        self,
        key: str,
        name: str,
        settings: Mapping[str, object],
        made_with: dict[str, str],
        make: Callable[[], T],
    ) -> Cell[T]:
        progress(f"cell {len(self._known) + 1}: {name} {_in_words(settings)}")
        begin, cpu = time.monotonic(), time.process_time()
        result, error = None, ""
        try:
            result = make()
        except Exception as problem:  # noqa: BLE001 - one cell must not take the others with it
            error = f"{type(problem).__name__}: {problem}"
            progress(f"failed: {error}")
        cell = Cell(
            name=name,
            settings=dict(settings),
            made_with=made_with,
            seconds=round(time.monotonic() - begin, 1),
            cpu_seconds=round(time.process_time() - cpu, 1),
            result=result,
            error=error,
        )
        path = self._path(key)
        if path is not None and not error:
            with claimed(path.parent, patience=_PATIENCE):
                replace(path, msgspec.json.format(msgspec.json.encode(cell), indent=1))
        return cell

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.json"


def _made_with(settings: Mapping[str, object]) -> dict[str, str]:
    made_with = {"codream-secure": __version__, "torch": version("torch")}
    path = Path(str(settings.get("dataset", "")))
    if path.suffix == ".npz" and path.is_file():
        made_with["data"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made_with


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def _in_words(settings: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
