"""The one door between dreaming and `protocols`: a request goes in, a sum comes out.

Both aggregators number their steps alike, draw the same dropouts from the run's seed and sum
the same quantized integers, so that a run with masks and a run without yield the same bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.communication import ByteLedger, Direction
from codream_secure.errors import RequestRefused, StepAborted, UserError
from codream_secure.messages import (
    VERSION,
    LabelRequest,
    Request,
    SoftLabels,
    digest,
    encode,
    sections,
)
from codream_secure.parallel import in_parallel
from codream_secure.seeds import derive_seed
from codream_secure.stopwatch import Stopwatch
from protocols.driver import DropSchedule, Tap, run_aggregation
from protocols.errors import LocalProtocolError, NotEnoughSurvivors
from protocols.field import PrimeField
from protocols.packing import pack
from protocols.params import AggregationParams, Phase, Section, default_threshold, rounds
from protocols.quantization import Quantizer

# A client: takes the bytes of a request and the protocol step, returns quantized sections.
Answer = Callable[[bytes, int], Mapping[str, NDArray[np.uint32]]]

_ROUNDS = rounds("semi-honest")


@dataclass(frozen=True, slots=True)
class FieldSum:
    """The exact sums of one aggregation; all that the server learns of its clients.

    ``totals``: section name to integer sums, uint32. ``count``: number of summed clients.
    """

    totals: Mapping[str, NDArray[np.uint32]]
    count: int
    sections: tuple[Section, ...]

    def quantizer(self, name: str) -> Quantizer:
        """Return the quantizer that the clients used for a section."""
        section = next(section for section in self.sections if section.name == name)
        return Quantizer(section.bits, section.clip)

    def mean(self, name: str) -> NDArray[np.float64]:
        """Return the decoded mean of a section, equal weights, float64, flat."""
        return self.quantizer(name).decode_sum(self.totals[name], self.count) / self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSettings:
    """Who takes part and how failures are simulated.

    Args:
        roster: client ids, ascending.
        threshold: t; None stands for floor(2n/3) + 1.
        dropout: probability that a client fails in one aggregation, at a uniform round.
        seed: of the dropouts.
    """

    roster: tuple[int, ...]
    threshold: int | None = None
    dropout: float = 0.0
    seed: int = 0

    @property
    def needed(self) -> int:
        """The threshold in force."""
        return default_threshold(len(self.roster)) if self.threshold is None else self.threshold

    def drops(self, step: int) -> DropSchedule:
        """Return who fails when in protocol step ``step``."""
        draw = np.random.default_rng(derive_seed(self.seed, "dropout", step))
        fails = draw.random(len(self.roster)) < self.dropout
        rounds = draw.integers(len(_ROUNDS), size=len(self.roster))
        return DropSchedule(
            {c: _ROUNDS[r] for c, f, r in zip(self.roster, fails, rounds, strict=True) if f}
        )


@dataclass(slots=True)
class Meters:
    """What an aggregator reports to: bytes and seconds. Never values."""

    ledger: ByteLedger
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


class Aggregator(ABC):
    """Sums the clients' answers to a request."""

    round_trips: int

    def __init__(
        self, clients: Mapping[int, Answer], settings: AggregationSettings, meters: Meters
    ) -> None:
        self._clients = clients
        self._settings = settings
        self._meters = meters
        # D6: this counter is not the dream-step number and never goes back.
        self._step = 0
        self.aborted_steps = 0
        self.unanswered_requests = 0

    @property
    def threshold(self) -> int:
        """Clients that must stay."""
        return self._settings.needed

    @property
    def steps(self) -> int:
        """Aggregations started so far."""
        return self._step

    def sum(self, request: Request) -> FieldSum:
        """Run one aggregation.

        Raises:
            StepAborted: fewer than the threshold stayed; it is counted in ``aborted_steps``.
        """
        step, self._step = self._step, self._step + 1
        drops = self._settings.drops(step)
        broadcast = encode(request)
        with self._meters.stopwatch.measure("secure_aggregation"):
            inputs, drops = self._collect(broadcast, step, drops)
            try:
                total = self._aggregate(request, broadcast, inputs, step, drops)
            except NotEnoughSurvivors as error:
                self.aborted_steps += 1
                raise StepAborted(str(error)) from None
        if isinstance(request, LabelRequest):
            self._publish_labels(request, total)
        return total

    def _collect(
        self, broadcast: bytes, step: int, drops: DropSchedule
    ) -> tuple[dict[int, Mapping[str, NDArray[np.uint32]]], DropSchedule]:
        """Send the broadcast and let the clients compute that are still there for masked input.

        A client that refuses the request, or whose answer holds a NaN, falls silent before its
        masked input; nothing of it is in the sum.
        """
        gone = {Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS}
        present = [c for c in self._settings.roster if drops.drops.get(c) not in gone]
        if len(present) < self._settings.needed:
            return {}, drops
        for _ in present:
            self._meters.ledger.record("broadcast", "down", len(broadcast))
        senders = [c for c in present if drops.drops.get(c) is not Phase.MASKED_INPUT]
        with self._meters.stopwatch.measure("answering"):
            answers = in_parallel(lambda c: self._ask(c, broadcast, step), senders)
            answered = dict(zip(senders, answers, strict=True))
        silent = {c: Phase.MASKED_INPUT for c, answer in answered.items() if answer is None}
        self.unanswered_requests += len(silent)
        inputs = {c: answer for c, answer in answered.items() if answer is not None}
        return inputs, DropSchedule({**drops.drops, **silent})

    def _ask(
        self, client: int, broadcast: bytes, step: int
    ) -> Mapping[str, NDArray[np.uint32]] | None:
        try:
            return self._clients[client](broadcast, step)
        except (RequestRefused, LocalProtocolError):
            return None

    @abstractmethod
    def _aggregate(
        self,
        request: Request,
        broadcast: bytes,
        inputs: Mapping[int, Mapping[str, NDArray[np.uint32]]],
        step: int,
        drops: DropSchedule,
    ) -> FieldSum: ...

    def _publish_labels(self, request: LabelRequest, total: FieldSum) -> None:
        (section,) = total.sections
        width = PrimeField.for_sum(len(self._settings.roster), section.bits).bits
        message = SoftLabels(
            version=VERSION,
            round=request.round,
            batch=request.batch,
            count=total.count,
            totals=pack(total.totals[section.name], width),
        )
        size = len(encode(message))
        for _ in self._settings.roster:
            self._meters.ledger.record("labels", "down", size)

    def _count(self, request: Request, phase: Phase, direction: Direction, size: int) -> None:
        labels = isinstance(request, LabelRequest) and phase is Phase.MASKED_INPUT
        uploads_labels = labels and direction == "up"
        self._meters.ledger.record("labels" if uploads_labels else phase, direction, size)


class SecureAggregator(Aggregator):
    """Sums under the pairwise-mask protocol of `protocols` (semi-honest model).

    Keys and masks are fresh from the operating system at every step.

    Args:
        clients: by id.
        settings: roster, threshold, dropouts.
        meters: bytes and seconds.
        session: 32 public bytes, fresh for every run.
        tap: sees every encoded protocol message (tests play the curious server with it).
    """

    round_trips = len(_ROUNDS)

    def __init__(
        self,
        clients: Mapping[int, Answer],
        settings: AggregationSettings,
        meters: Meters,
        *,
        session: bytes,
        tap: Tap | None = None,
    ) -> None:
        super().__init__(clients, settings, meters)
        if len(settings.roster) < 3:  # noqa: PLR2004 - with two, each learns the other's input
            raise UserError(
                f"secure aggregation needs at least 3 clients, not {len(settings.roster)}: "
                "with two, each learns the other's input; add clients or pass --no-secure"
            )
        self._session = session
        self._tap = tap

    def _aggregate(
        self,
        request: Request,
        broadcast: bytes,
        inputs: Mapping[int, Mapping[str, NDArray[np.uint32]]],
        step: int,
        drops: DropSchedule,
    ) -> FieldSum:
        params = AggregationParams(
            session=self._session,
            step=step,
            kind=type(request).__name__,
            roster=self._settings.roster,
            threshold=self._settings.needed,
            sections=sections(request),
            broadcast_digest=digest(broadcast),
        )

        def tap(phase: Phase, direction: Direction, client: int, message: bytes) -> None:
            self._count(request, phase, direction, len(message))
            if self._tap is not None:
                self._tap(phase, direction, client, message)

        result = run_aggregation(inputs, params, drops=drops, tap=tap)
        return FieldSum(result.totals, len(result.survivors), params.sections)


class ClearInput(msgspec.Struct, frozen=True, array_like=True, tag="clear_input"):
    """What a client sends under ``--no-secure``: its quantized sections, packed, in the clear."""

    version: int
    step: int
    sections: tuple[bytes, ...]


class PlainAggregator(Aggregator):
    """Sums in the clear, for comparison only: the server sees every client's input."""

    round_trips = 1

    def _aggregate(
        self,
        request: Request,
        broadcast: bytes,  # noqa: ARG002 - nothing is bound to it in the clear
        inputs: Mapping[int, Mapping[str, NDArray[np.uint32]]],
        step: int,
        drops: DropSchedule,
    ) -> FieldSum:
        self._check_threshold(drops)
        wanted = sections(request)
        for values in inputs.values():
            packed = tuple(pack(values[s.name], s.bits) for s in wanted)
            message = ClearInput(version=VERSION, step=step, sections=packed)
            size = len(msgspec.msgpack.encode(message))
            self._count(request, Phase.MASKED_INPUT, "up", size)
        totals = {s.name: self._total([v[s.name] for v in inputs.values()]) for s in wanted}
        return FieldSum(totals, len(inputs), wanted)

    def _check_threshold(self, drops: DropSchedule) -> None:
        """Abort exactly where the masked protocol would."""
        alive = len(self._settings.roster)
        for phase in _ROUNDS:
            alive -= sum(dropped is phase for dropped in drops.drops.values())
            if alive < self._settings.needed:
                raise NotEnoughSurvivors(phase, alive, self._settings.needed)

    @staticmethod
    def _total(vectors: list[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        return np.asarray(np.sum(vectors, axis=0, dtype=np.uint64), dtype=np.uint32)
