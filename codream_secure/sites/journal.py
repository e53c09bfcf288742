"""What a server writes down, so that one that starts again goes on with the same run.

What the server does follows from the run's settings and the sums that it received. So this is all
that there is: who the run is, its state between two rounds, and every sum since. A server that
starts again does the round anew that was cut off, and takes from here the sums that it had; what
was asked and had no end counts as an aborted step, and nothing is asked twice (D1, D6).
"""

import os
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
from codream_secure.storage.checkpoint import (
    GroupState,
    LearnerState,
    LedgerState,
    Pair,
    decode_state,
    encode_state,
)
from codream_secure.storage.state_folder import StateFolder
from protocols.phases import Phase

FORMAT = 2
_FOLDER = "state"
_RUN, _STATE, _BATCH, _STEP = "run", "state", "next-batch", "step-"


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which run it is: written before the first message, and compared by whoever goes on.

    Attributes:
        session: 32 public bytes.
        options: of the run, resolved.
        identities: public keys in roster order, in the malicious model.
        spec: channels, height, width and classes.
        scaling: mean and standard deviation by channel.
        share: examples of a site if they were dealt evenly.
        evaluates: whether sites are asked for accuracies.
    """

    session: bytes
    options: dict[str, int | float | str | bool | None]
    identities: tuple[bytes, ...]
    spec: tuple[int, int, int, int]
    scaling: tuple[tuple[float, ...], tuple[float, ...]]
    share: int
    evaluates: bool
    format: int = FORMAT


class RoundState(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a finished round; see `coordinator.Round`."""

    number: int
    digest: str
    server: float | None
    learned: int
    sites: tuple[float, int] | None


class ServerState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server between two rounds.

    Attributes:
        rounds: that are finished.
        dreams: labelled batches of the last one, pixels and targets.
        student: the server's.
        group: dreams and counters; the protocol's keys are never stored.
        next_step: of the protocol; records of steps before it are of no use.
        sums: begun so far, evaluations included.
        told: what sites were sent to learn from, encoded, in order.
        ledger: bytes.
        traffic: what really moved.
    """

    format: int
    rounds: list[RoundState]
    dreams: list[Pair]
    student: LearnerState
    group: GroupState
    next_step: int
    sums: int
    told: list[bytes]
    ledger: LedgerState
    traffic: Traffic


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the protocol.

    Attributes:
        broadcast: digest of what was asked.
        totals: by section, uint32, little-endian; None: it was aborted, or it is not known how it
            ended.
        count: sites in the sum.
        messages: phase, direction, site and bytes of every message, as the ledger counts them.
        traffic: what had moved by then.
    """

    broadcast: bytes
    totals: dict[str, bytes] | None = None
    count: int = 0
    messages: list[tuple[Phase, Direction, int, int]] = msgspec.field(default_factory=list)
    traffic: Traffic = msgspec.field(default_factory=Traffic)

    def sums(self) -> dict[str, NDArray[np.uint32]] | None:
        """Return the sums by section; None if there are none."""
        if self.totals is None:
            return None
        found = {name: np.frombuffer(data, "<u4") for name, data in self.totals.items()}
        return {name: values.astype(np.uint32) for name, values in found.items()}


class Journal:
    """The folder ``state`` of a run over sites: for its owner alone, and for one process at a time.

    Args:
        folder: holds the records; None: nothing is kept, and nobody can go on.
        resumed: whether there is a run to go on with.
    """

    def __init__(self, folder: StateFolder | None = None, *, resumed: bool = False) -> None:
        self._folder, self._resumed = folder, resumed
        self.run: RunRecord | None = None
        self.state: ServerState | None = None
        self._steps: dict[int, StepRecord] = {}
        self._next_batch = 0
        if resumed:
            self._read()

    @classmethod
    def create(cls, out: Path) -> Self:
        """Begin in the folder of a new run.

        Raises:
            UserError: there is a run in it, or it cannot be written.
        """
        if (out / _FOLDER / _RUN).exists() or (out / "summary.json").exists():
            raise UserError(
                f"{out} holds a run already: go on with it (resume=true), or use another out"
            )
        out.mkdir(parents=True, exist_ok=True)
        return cls(StateFolder(out / _FOLDER))

    @classmethod
    def resume(cls, out: Path) -> Self:
        """Read what is there of a run.

        Raises:
            UserError: there is none, it is damaged, or another process uses it.
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
        """Let another process use the folder."""
        if self._folder is not None:
            self._folder.close()

    def begin(self, run: RunRecord) -> RunRecord:
        """Write down which run begins, or compare with the one that is there.

        Returns:
            The one that is there; it has a session of its own.

        Raises:
            UserError: another run is there.
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
        """The number of the first batch of keys that was never begun."""
        return self._next_batch

    def note_batch(self, number: int) -> None:
        """Write down what `next_batch` is from now on."""
        self._write(_BATCH, str(number).encode())
        self._next_batch = number

    def step(self, number: int, broadcast: bytes) -> StepRecord | None:
        """Return what is known of a step of the protocol; None if it has never been begun.

        Args:
            number: of the step.
            broadcast: digest of what is to be asked.

        Raises:
            UserError: something else was asked: this machine computes other dreams from the same
                sums than the one before.
        """
        found = self._steps.get(number)
        if found is not None and found.broadcast != broadcast:
            raise UserError(
                "resume: this machine gets other dreams from the recorded sums than the one that "
                "the run was begun on; go on with the same hardware and PyTorch, or begin anew"
            )
        return found

    def begin_step(self, number: int, broadcast: bytes, traffic: Traffic) -> None:
        """Write down that a step is going to be asked for."""
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
    ) -> None:
        """Write down how a step ended; see `StepRecord`."""
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
            ),
        )

    def save(self, state: ServerState) -> None:
        """Replace the state, and forget the steps that led to it.

        Raises:
            UserError: it cannot be written; the one before is still there.
        """
        if self._folder is None:
            return
        self._write(_STATE, encode_state(state))
        for number in self._steps:
            self._folder.erase(_step_name(number))
        self._steps.clear()

    def traffic(self) -> Traffic:
        """Return what had moved when the last record was written."""
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
        """Read the steps since the state; those before it are left over from a crash."""
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
        if self._folder is None:
            return
        try:
            self._folder.save(name, data)
        except OSError as error:
            text = os.strerror(error.errno or 0)
            raise UserError(f"cannot write to {self._folder.path}: {text}") from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} is damaged: {reason}")


def _step_name(number: int) -> str:
    return f"{_STEP}{number:010}"


def _differences(first: RunRecord, second: RunRecord) -> list[str]:
    """Return the names of the settings in which two runs differ, their sessions left out."""
    names = set(first.options) | set(second.options)
    options = [n for n in sorted(names) if first.options.get(n) != second.options.get(n)]
    fields = [f for f in RunRecord.__struct_fields__ if f not in ("session", "options")]
    return options + [f for f in fields if getattr(first, f) != getattr(second, f)]
