"""The folder that a run writes: configuration, metrics, summary, models, checkpoints."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec
from filelock import FileLock

from codream_secure.config.rules import resolve, to_toml
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.federation.run import Run
from codream_secure.runs.checkpoints import Checkpoints, Resumable, has_checkpoint
from codream_secure.runs.formats import (
    CONFIG,
    METRICS,
    SUMMARY,
    Row,
    Summary,
    compact,
    parse_row,
    pretty,
)
from codream_secure.runs.models import trained_models
from codream_secure.runs.summary import row_of
from codream_secure.storage.files import (
    append,
    clean,
    remove,
    replace,
    replace_folder,
    shorten,
    unwritable,
)
from codream_secure.storage.folder_lock import check_empty, claim, new_folder
from codream_secure.storage.looking import is_file, is_folder
from codream_secure.storage.toml import load_toml

# The page about a run is the last thing that is written: `report.page.PAGE`.
_MODELS, _PAGE = "models", "report.html"


def default_folder(config: Config) -> Path:
    """Make and return ``runs/<time>-<name>`` for a run that starts now, with a number if need be.

    Raises:
        WriteError: it cannot be made.
    """
    name = Path(config.data.dataset).stem
    return new_folder(
        Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.dream.method}-{name}"
    )


class RunFolder:
    """A folder that is readable at any moment of the run, also after a kill or on a full disk.

    Models come before the summary, and the page about the run comes last: what of them is there is
    whole, and a run whose folder lacks one of them has not finished.

    Args:
        path: of the folder.
        lock: keeps other processes out.
        checkpoints: None if the run writes none.
    """

    def __init__(self, path: Path, lock: FileLock, checkpoints: Checkpoints | None = None) -> None:
        self.path = path
        self._lock = lock
        self._checkpoints = checkpoints

    @classmethod
    def create(cls, path: Path, *, checkpoint_every: int | None = None) -> Self:
        """Make the folder of a new run, and keep other processes out.

        Args:
            path: must not exist or be empty.
            checkpoint_every: rounds between two checkpoints; None writes none.

        Raises:
            UserError: the folder holds something already, is in use or cannot be written.
        """
        check_empty(path)  # before a lock is put into what may be somebody's folder
        lock = claim(path)
        try:
            check_empty(path)
            replace(path / METRICS, b"")
            kept = Checkpoints.create(path, checkpoint_every) if checkpoint_every else None
        except BaseException:
            lock.release()
            raise
        return cls(path, lock, kept)

    @classmethod
    def reopen(cls, path: Path, *, checkpoint_every: int | None = None) -> Self:
        """Open the folder of an interrupted run; nothing in it is changed yet.

        Args:
            path: of the run.
            checkpoint_every: another interval than before; None keeps it.

        Raises:
            UserError: it is no run's folder, it is in use, the run has finished, or it has no
                checkpoint that can be used.
        """
        if not is_folder(path):
            raise UserError(f"--resume {path}: there is no such folder")
        if not is_file(path / CONFIG) or not is_file(path / METRICS):
            raise UserError(f"--resume {path}: this is not the folder of a run")
        lock = claim(path)
        try:
            if _has_finished(path):
                raise UserError(
                    f"--resume {path}: the run has finished; there is nothing left to do"
                )
            kept = Checkpoints.open(path, checkpoint_every)
        except BaseException:
            lock.release()
            raise
        return cls(path, lock, kept)

    @property
    def _metrics(self) -> Path:
        return self.path / METRICS

    def start(self, run: Run) -> None:
        """Write what is needed to rerun: ``codream-secure simulate --config config.toml``."""
        replace(self.path / CONFIG, to_toml(run.config))
        if self._checkpoints:
            self._checkpoints.attach(run)

    def configuration(self, given: Mapping[str, object]) -> Config:
        """Return the settings of the interrupted run.

        Args:
            given: options that the user repeats; they may not differ.

        Raises:
            UserError: they do, or ``config.toml`` is not what the run was started with.
        """
        if self._checkpoints is None:
            raise ValueError("not an interrupted run")
        kept = resolve(Config.from_options(self._checkpoints.last.config))
        if resolve(Config.from_options(load_toml(self.path / CONFIG))) != kept:
            raise UserError(
                f"{self.path / CONFIG} is not the configuration that the run was started with; "
                "put the old one back, or start a new run"
            )
        before = kept.options()
        wanted = resolve(Config.from_options(before | dict(given))).options()
        for name in given:
            if wanted[name] != before[name]:
                raise UserError(
                    f"--{name.replace('_', '-')} {wanted[name]} contradicts --resume {self.path}: "
                    f"the run has {before[name]}, and goes on with the settings it began with"
                )
        return kept

    def restore(self, run: Resumable) -> None:
        """Go on from the last checkpoint; rows of rounds after it are dropped.

        Raises:
            UserError: the checkpoint does not fit, or rows are missing; nothing was changed.
        """
        if self._checkpoints is None:
            raise ValueError("not an interrupted run")
        self._checkpoints.restore(run)
        finished = run.finished_rounds
        rows = self._metrics.read_bytes().splitlines(keepends=True)[:finished]
        if [_round_of(row) for row in rows] != list(range(1, finished + 1)):
            raise UserError(f"{self._metrics} is damaged: rows of the first {finished} rounds miss")
        try:
            clean(self.path)
            # It would tell of rounds that are run again.
            remove(self.path / SUMMARY)
        except OSError as error:
            raise unwritable(self.path, error) from None
        shorten(self._metrics, sum(map(len, rows)))
        self._checkpoints.attach(run)

    def rows(self) -> list[Row]:
        """Return the finished rounds that are recorded.

        Raises:
            UserError: a row is damaged.
        """
        try:
            return [parse_row(line) for line in self._metrics.read_bytes().splitlines()]
        except ValueError as error:
            raise UserError(f"{self._metrics} is damaged ({error})") from None

    def record(self, row: Row) -> None:
        """Append the round that has just ended (`runs.summary.row_of`) to metrics.jsonl."""
        append(self._metrics, compact(row) + "\n")

    def checkpoint(self, run: Resumable) -> None:
        """Write a checkpoint if one is due; call it after `record`.

        Raises:
            UserError: it cannot be written; the one before is still there.
        """
        if self._checkpoints:
            self._checkpoints.save(run)

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return has_checkpoint(self.path)

    def complete(self, run: Run) -> None:
        """Append the row of the last round if an interruption came between the two.

        Raises:
            WriteError: it cannot be written.
        """
        rows = self._metrics.read_bytes().count(b"\n")
        for measurement in run.observer.history[rows:]:
            append(self._metrics, compact(row_of(run, measurement)) + "\n")

    def write_models(self, run: Run) -> None:
        """Write the models of whatever was reached, all or none.

        Raises:
            WriteError: they cannot be written.
        """
        content = {
            f"{name}/{file}": data
            for name, model in trained_models(run).items()
            for file, data in model.files().items()
        }
        replace_folder(self.path / _MODELS, content)

    def write_summary(self, summary: Summary) -> None:
        """Write the summary; of a run with models, after `write_models`.

        Raises:
            WriteError: it cannot be written.
        """
        replace(self.path / SUMMARY, pretty(summary))

    def close(self) -> None:
        """Let another process resume the run."""
        if self._checkpoints:
            self._checkpoints.close()
        self._lock.release()


class _Ended(msgspec.Struct):
    """The only part of a summary that says whether a run has ended; the same in every format."""

    rounds: int
    rounds_finished: int


def _has_finished(run: Path) -> bool:
    try:
        found = msgspec.json.decode((run / SUMMARY).read_bytes(), type=_Ended)
    except (OSError, ValueError, RecursionError):  # none, or a damaged one
        return False
    whole = (run / _MODELS).is_dir() and (run / _PAGE).is_file()
    return whole and found.rounds_finished >= found.rounds


def _round_of(line: bytes) -> int | None:
    try:
        return parse_row(line).round if line.endswith(b"\n") else None
    except ValueError:
        return None
