"""The server's journal: everything that it needs to continue its run after a crash.

All that a server does follows from the settings of the run and from the sums that it received. So
the journal stores just these: which run it is, its state between two rounds, and every sum since.
A restarted server repeats the round that the crash cut off, and takes the sums that it had before
from the journal. A step that was asked for and did not end counts as aborted, so that sites are
asked nothing twice (D1, D6).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.byte_ledger import Direction
from codream_secure.errors import UserError
from codream_secure.sites.peers import Traffic
from codream_secure.sites.server_state import FORMAT, RunRecord, ServerState, StepRecord
from codream_secure.sites.wire import Listed
from codream_secure.storage.checkpoint import decode_state, encode_state
from codream_secure.storage.state_folder import StateFolder
from protocols.phases import Phase

_FOLDER = "state"
_RUN, _STATE, _BATCH, _STEP = "run", "state", "next-batch", "step-"
_REQUEST = "request-"


class Journal:
    """The folder ``state`` of a run: readable for its owner only, used by one process at a time.

    Args:
        folder: holds the records; None: nothing is stored, and the run cannot be continued.
        resumed: whether to read a stored run.

    Attributes:
        run: which run it is; None: it has not begun.
        state: as stored after the last finished round; None: there is none.

    Raises:
        UserError: a record is damaged.
    """

    def __init__(self, folder: StateFolder | None = None, *, resumed: bool = False) -> None:
        self._folder, self._resumed = folder, resumed
        self.run: RunRecord | None = None
        self.state: ServerState | None = None
        self._steps: dict[int, StepRecord] = {}
        self._next_batch = 0
        self._requests: dict[bytes, bytes] = {}
        if resumed:
            self._read()

    @classmethod
    def create(cls, out: Path) -> Self:
        """Create the journal of a new run in the folder ``out``.

        Raises:
            UserError: the folder holds a run already, or cannot be written.
        """
        if (out / _FOLDER / _RUN).exists() or (out / "summary.json").exists():
            raise UserError(
                f"{out} holds a run already: resume it (resume=true), or use another out"
            )
        out.mkdir(parents=True, exist_ok=True)
        return cls(StateFolder(out / _FOLDER))

    @classmethod
    def resume(cls, out: Path) -> Self:
        """Read the journal of a run in the folder ``out``.

        Raises:
            UserError: there is no run, its records are damaged, or another process uses it.
        """
        if not (out / _FOLDER / _RUN).exists():
            raise UserError(f"resume: there is no run in {out}; start one without resume=true")
        folder = StateFolder(out / _FOLDER)
        try:
            return cls(folder, resumed=True)
        except BaseException:
            folder.close()
            raise

    def close(self) -> None:
        """Release the folder for other processes."""
        if self._folder is not None:
            self._folder.close()

    def begin(self, run: RunRecord) -> RunRecord:
        """Store which run begins, or compare it with the run that is stored.

        Returns:
            The stored run. Its session is the one to use, since sites know the run by it.

        Raises:
            UserError: a run with other settings is stored.
        """
        if self.run is None:
            self._write(_RUN, msgspec.msgpack.encode(run))
            self.run = run
        if differing := _differences(self.run, run):
            raise UserError(
                f"resume: the run that is there has another {', '.join(differing)}; "
                "give the settings that it began with, or use another out"
            )
        return self.run

    @property
    def next_batch(self) -> int:
        """The number of the first key batch that was never begun."""
        return self._next_batch

    def note_batch(self, number: int) -> None:
        """Store what `next_batch` is from now on; call it before the batch begins."""
        self._write(_BATCH, str(number).encode())
        self._next_batch = number

    def step(self, number: int, broadcast: bytes) -> StepRecord | None:
        """Return the record of a step; None: the step was never begun.

        Args:
            number: of the step.
            broadcast: SHA-256 digest of the request that is about to be sent.

        Raises:
            UserError: another request was sent in this step. Then this machine computes other
                dreams from the same sums, and the keys of the step must not mask a second input.
        """
        found = self._steps.get(number)
        if found is not None and found.broadcast != broadcast:
            raise UserError(
                "resume: this machine gets other dreams from the recorded sums than the one that "
                "the run was begun on; resume on the same hardware and PyTorch, or start a new run"
            )
        return found

    def begin_step(self, number: int, broadcast: bytes, traffic: Traffic) -> None:
        """Store that a step begins; call it before the first message of the step."""
        self._save_step(number, StepRecord(broadcast=broadcast, traffic=replace(traffic)))

    def end_step(
        self,
        number: int,
        broadcast: bytes,
        *,
        totals: Mapping[str, NDArray[np.uint32]] | None,
        count: int,
        messages: list[tuple[Phase, Direction, int, int]],
        traffic: Traffic,
        listed: Listed,
    ) -> None:
        """Store how a step ended; see `StepRecord` for the arguments."""
        packed = None
        if totals is not None:
            packed = {name: values.astype("<u4").tobytes() for name, values in totals.items()}
        self._save_step(
            number,
            StepRecord(
                broadcast=broadcast,
                totals=packed,
                count=count,
                messages=messages,
                traffic=replace(traffic),
                listed=listed,
            ),
        )

    def keep_request(self, name: bytes, request: bytes) -> None:
        """Keep a request whose labels sites learn from, for a site that missed it."""
        if self._folder is None:
            self._requests[name] = request
        elif self.request(name) is None:
            self._write(_REQUEST + name.hex(), request)

    def request(self, name: bytes) -> bytes | None:
        """Return a kept request by its name in the record; None: there is none."""
        if self._folder is None:
            return self._requests.get(name)
        return self._folder.load(_REQUEST + name.hex())

    def save(self, state: ServerState) -> None:
        """Replace the state, and erase the records of the steps that led to it.

        Raises:
            UserError: it cannot be written; the state before is still there.
        """
        if self._folder is None:
            return
        self._write(_STATE, encode_state(state))
        for number in self._steps:
            self._folder.erase(_step_name(number))
        self._steps.clear()

    def traffic(self) -> Traffic:
        """Return what the transport had carried when the last record was written."""
        if self._steps:
            return replace(self._steps[max(self._steps)].traffic)
        return Traffic() if self.state is None else replace(self.state.traffic)

    def _save_step(self, number: int, record: StepRecord) -> None:
        if self._folder is not None:
            self._write(_step_name(number), msgspec.msgpack.encode(record))
            self._steps[number] = record

    def _read(self) -> None:
        folder = self._folder
        if folder is None:
            return
        try:
            self.run = msgspec.msgpack.decode(folder.load(_RUN) or b"", type=RunRecord)
            if self.run.format != FORMAT:
                raise ValueError("it was written by another version of this program")
            if (kept := folder.load(_STATE)) is not None:
                self.state = decode_state(kept, ServerState, FORMAT)
            self._next_batch = int(folder.load(_BATCH) or b"0")
            self._read_steps(folder)
        except (ValueError, UnicodeDecodeError) as error:
            raise _damaged(folder.path, error) from None

    def _read_steps(self, folder: StateFolder) -> None:
        """Read the steps since the state; a crash between two writes can leave older ones."""
        first = 0 if self.state is None else self.state.next_step
        for name in folder.names():
            if not name.startswith(_STEP):
                continue
            if (number := int(name.removeprefix(_STEP))) < first:
                folder.erase(name)
                continue
            record = msgspec.msgpack.decode(folder.load(name) or b"", type=StepRecord)
            self._steps[number] = record

    def _write(self, name: str, data: bytes) -> None:
        if self._folder is not None:
            self._folder.save(name, data)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is damaged: {reason}")


def _step_name(number: int) -> str:
    return f"{_STEP}{number:010}"


def _differences(first: RunRecord, second: RunRecord) -> list[str]:
    """Return the names of the settings in which two runs differ; sessions always differ."""
    names = set(first.options) | set(second.options)
    options = [n for n in sorted(names) if first.options.get(n) != second.options.get(n)]
    fields = [f for f in RunRecord.__struct_fields__ if f not in ("session", "options")]
    return options + [f for f in fields if getattr(first, f) != getattr(second, f)]
