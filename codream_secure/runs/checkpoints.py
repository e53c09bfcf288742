"""The checkpoints of a run on disk: the last one, whole, and the private steps charged so far."""

from pathlib import Path
from typing import Protocol, Self

from codream_secure.errors import UserError
from codream_secure.federation.run import Run
from codream_secure.privacy.plan import AnyPlan
from codream_secure.storage.checkpoint import RunState, decode, encode
from codream_secure.storage.state_folder import StateFolder

_FOLDER = "checkpoint"
_STATE = "state"
_CHARGED = "charged"


class Resumable(Protocol):
    """What checkpoints need of a run that can go on after an interruption: a `Simulation`."""

    @property
    def finished_rounds(self) -> int:
        """Rounds that have ended."""

    @property
    def budget(self) -> AnyPlan | None:
        """The budget that private releases are charged to; None without DP."""

    def state(self, *, checkpoint_every: int) -> RunState:
        """Return everything that the rounds to come depend on."""

    def restore(self, state: RunState, charged: int) -> None:
        """Go on from a state; ``charged`` private steps count as taken."""


def has_checkpoint(run: Path) -> bool:
    """Tell whether a run's folder holds a checkpoint."""
    return (run / _FOLDER / _STATE).is_file()


class Checkpoints:
    """The folder ``checkpoint`` of a run: for its owner alone, and for one process at a time.

    A checkpoint replaces the one before as a whole. Private steps are on record here before they
    are taken, so that no crash gives a budget back.

    Args:
        folder: holds the records.
        every: rounds between two checkpoints.
        last: what was read from the folder, if the run is to go on.
    """

    def __init__(self, folder: StateFolder, every: int, last: RunState | None = None) -> None:
        self._folder = folder
        self._every = every
        self._last = last

    @classmethod
    def create(cls, run: Path, every: int) -> Self:
        """Begin with none, in the folder of a new run.

        Raises:
            UserError: it cannot be written.
        """
        return cls(StateFolder(run / _FOLDER), every)

    @classmethod
    def open(cls, run: Path, every: int | None) -> Self:
        """Read the last one; ``every`` of None keeps the interval that it names.

        Raises:
            UserError: there is none, it is damaged, or another process uses it.
        """
        path = run / _FOLDER / _STATE
        if not has_checkpoint(run):
            raise UserError(
                f"--resume {run}: the run has no checkpoint (--checkpoint-every writes them); "
                "start it anew"
            )
        folder = StateFolder(path.parent)
        try:
            last = decode(path.read_bytes())
        except ValueError as error:
            folder.close()
            raise _damaged(path, error) from None
        except BaseException:
            folder.close()
            raise
        return cls(folder, last.checkpoint_every if every is None else every, last)

    @property
    def last(self) -> RunState:
        """The checkpoint that was read.

        Raises:
            ValueError: this is a new run's folder.
        """
        if self._last is None:
            raise ValueError("nothing was read")
        return self._last

    def attach(self, run: Run | Resumable) -> None:
        """Keep the record of the private steps that the run is going to take."""
        if plan := run.budget:
            plan.journal = self._charge

    def restore(self, run: Resumable) -> None:
        """Restore the interrupted run from the checkpoint, and free the memory that it took.

        Raises:
            UserError: the checkpoint or the record of private steps does not fit.
        """
        try:
            run.restore(self.last, self._charged() if run.budget else 0)
        except (ValueError, RuntimeError, KeyError) as error:
            raise _damaged(self._folder.path, error) from None
        self._last = None

    def save(self, run: Resumable) -> None:
        """Replace the checkpoint if one is due after the round that has ended.

        Raises:
            WriteError: it cannot be written; the one before is still there.
        """
        if run.finished_rounds % self._every:
            return
        self._folder.save(_STATE, encode(run.state(checkpoint_every=self._every)))

    def close(self) -> None:
        """Let another process use the folder."""
        self._folder.close()

    def _charge(self, steps: int) -> None:
        self._folder.save(_CHARGED, str(steps).encode())

    def _charged(self) -> int:
        record = self._folder.load(_CHARGED)
        if record is None or not record.isdigit():
            raise ValueError("the record of private steps is missing or no number")
        return int(record)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is damaged: {reason}")
