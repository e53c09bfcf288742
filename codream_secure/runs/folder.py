"""The folder that a run writes: configuration, metrics, summary, models, checkpoints."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
from safetensors.torch import save_file

from codream_secure.config.rules import resolve, to_toml
from codream_secure.config.settings import Config, load_toml
from codream_secure.errors import UserError
from codream_secure.federation.observer import Measurement
from codream_secure.federation.run import Run
from codream_secure.runs.checkpoints import Checkpoints, Resumable
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
from codream_secure.runs.summary import row_of
from codream_secure.runs.tensorboard import open_events, write_events

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


def default_folder(config: Config) -> Path:
    """Return ``runs/<time>-<name>`` for a run that starts now."""
    name = Path(config.data.dataset).stem
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.dream.method}-{name}"


class RunFolder:
    """A folder that is readable at any moment of the run, also after Ctrl-C.

    Args:
        path: of the folder.
        checkpoints: None if the run writes none.
    """

    def __init__(self, path: Path, checkpoints: Checkpoints | None = None) -> None:
        self.path = path
        self._checkpoints = checkpoints
        self._events: SummaryWriter | None = None

    @classmethod
    def create(cls, path: Path, *, checkpoint_every: int | None = None) -> Self:
        """Make the folder of a new run.

        Args:
            path: must not exist or be empty.
            checkpoint_every: rounds between two checkpoints; None writes none.

        Raises:
            UserError: the folder holds something already or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"--out {path} is not empty; name another folder or empty it")
            (path / METRICS).touch()
        except OSError as error:
            raise UserError(f"cannot write to --out {path}: {error.strerror}") from None
        return cls(path, Checkpoints.create(path, checkpoint_every) if checkpoint_every else None)

    @classmethod
    def reopen(cls, path: Path, *, checkpoint_every: int | None = None) -> Self:
        """Open the folder of an interrupted run; nothing in it is changed yet.

        Args:
            path: of the run.
            checkpoint_every: another interval than before; None keeps it.

        Raises:
            UserError: it is no run's folder, the run has finished, or it has no checkpoint that
                can be used.
        """
        if not path.is_dir():
            raise UserError(f"--resume {path}: there is no such folder")
        if not (path / CONFIG).is_file() or not (path / METRICS).is_file():
            raise UserError(f"--resume {path}: this is not the folder of a run")
        if _has_finished(path / SUMMARY):
            raise UserError(f"--resume {path}: the run has finished; there is nothing left to do")
        return cls(path, Checkpoints.open(path, checkpoint_every))

    @property
    def _metrics(self) -> Path:
        return self.path / METRICS

    def start(self, run: Run) -> None:
        """Write what is needed to rerun: ``codream-secure simulate --config config.toml``."""
        with (self.path / CONFIG).open("w", encoding="utf-8") as file:
            file.write(to_toml(run.config))
            file.flush()
            os.fsync(file.fileno())
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
        with self._metrics.open("r+b") as file:
            file.truncate(sum(map(len, rows)))
            os.fsync(file.fileno())
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

    def open_events(self) -> None:
        """Write TensorBoard's event files from now on.

        Raises:
            UserError: TensorBoard is not installed.
        """
        self._events = open_events(self.path)

    def record(self, run: Run, measurement: Measurement) -> None:
        """Append the round that has just ended to metrics.jsonl; a hook of `Run.after_round`."""
        row = row_of(run, measurement)
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(compact(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._events:
            write_events(self._events, measurement, row)

    def checkpoint(self, run: Resumable) -> None:
        """Write a checkpoint if one is due; call it after `record`.

        Raises:
            UserError: it cannot be written; the one before is still there.
        """
        if self._checkpoints:
            self._checkpoints.save(run)

    def finish(self, run: Run, summary: Summary, *, cell: bool = False) -> None:
        """Write the summary, then the models of whatever was reached.

        A cell of a comparison keeps no models.
        """
        (self.path / SUMMARY).write_text(pretty(summary), encoding="utf-8")
        if not cell:
            self._save_models(run)

    def close(self) -> None:
        """Let another process resume the run."""
        if self._events:
            self._events.close()
        if self._checkpoints:
            self._checkpoints.close()

    def _save_models(self, run: Run) -> None:
        folder = self.path / "models"
        folder.mkdir(exist_ok=True)
        for name, weights in run.weights().items():
            save_file(weights, folder / f"{name}.safetensors")


class _Ended(msgspec.Struct):
    """The only part of a summary that says whether a run has ended; the same in every format."""

    rounds: int
    rounds_finished: int


def _has_finished(summary: Path) -> bool:
    try:
        found = msgspec.json.decode(summary.read_bytes(), type=_Ended)
    except (OSError, ValueError, RecursionError):  # none, or one that a crash cut off
        return False
    return found.rounds_finished >= found.rounds


def _round_of(line: bytes) -> int | None:
    try:
        return parse_row(line).round if line.endswith(b"\n") else None
    except ValueError:
        return None
