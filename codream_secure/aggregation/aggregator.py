"""Base class of the aggregators: a request goes in, the sum of the clients' answers comes out.

Both aggregators number their steps in the same way, draw the same dropouts from the run's seed
and sum the same quantized integers. A run with masks and a run without give the same bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.attendance import Attendance
from codream_secure.aggregation.byte_ledger import ByteLedger, Direction
from codream_secure.aggregation.graph import MaskGraph
from codream_secure.aggregation.requests import (
    VERSION,
    Asked,
    DreamRequest,
    GradientRequest,
    LabelRequest,
    ModelRequest,
    SoftLabels,
    StatisticsRequest,
    asked_labels,
    digest,
    encode,
    payload,
)
from codream_secure.aggregation.sections import sections
from codream_secure.aggregation.settings import AggregationSettings, colluders
from codream_secure.errors import RequestRefused, StepAborted
from codream_secure.runtime.parallel import in_parallel
from codream_secure.runtime.stopwatch import Stopwatch
from codream_secure.storage.checkpoint import AggregatorState
from protocols.errors import LocalProtocolError, NotEnoughSurvivors
from protocols.params import Section, Task
from protocols.phases import DropSchedule, Phase
from protocols.primitives.field import PrimeField
from protocols.primitives.packing import pack
from protocols.quantization import Quantizer

# A client: gets an encoded request and the number of the step, returns quantized sections.
AnsweringClient = Callable[[bytes, int], Mapping[str, NDArray[np.uint32]]]
# Kinds of requests in a run of CoDream, and in a run of a method that averages models.
DREAMING = frozenset(kind.__name__ for kind in (DreamRequest, LabelRequest, StatisticsRequest))
AVERAGING = frozenset({ModelRequest.__name__, GradientRequest.__name__})
Inputs = Mapping[int, Mapping[str, NDArray[np.uint32]]]


@dataclass(frozen=True, slots=True)
class FieldSum:
    """The exact sums of one aggregation; all that the server learns of its clients.

    Attributes:
        totals: integer sums by section name, uint32, flat.
        count: number of clients in the sum.
        sections: length and quantization of each section.
    """

    totals: Mapping[str, NDArray[np.uint32]]
    count: int
    sections: tuple[Section, ...]

    def quantizer(self, name: str) -> Quantizer:
        """Return the quantizer that clients use for a section."""
        section = next(section for section in self.sections if section.name == name)
        return Quantizer(section.maximum, section.clip)

    def mean(self, name: str) -> NDArray[np.float64]:
        """Return the decoded mean of a section over clients of equal weight, float64, flat."""
        return self.quantizer(name).decode_sum(self.totals[name], self.count) / self.count


@dataclass(slots=True)
class Meters:
    """Where an aggregator records bytes and seconds; they never see values."""

    ledger: ByteLedger
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True, slots=True)
class Call:
    """One aggregation: step number, request, encoded broadcast."""

    step: int
    request: Asked
    broadcast: bytes

    @property
    def task(self) -> Task:
        """The step's description in the protocol; client and server both derive it."""
        return Task(
            step=self.step,
            kind=type(self.request).__name__,
            sections=sections(self.request),
            broadcast_digest=digest(self.broadcast),
        )


# Kinds of requests whose inputs the byte ledger counts under a separate name.
_LINES = {LabelRequest: "labels", StatisticsRequest: "class_means"}


class Aggregator(ABC):
    """Sums the clients' answers to a request.

    Args:
        clients: by id.
        settings: roster, threshold, threat model, dropouts.
        meters: where bytes and seconds are recorded.

    Attributes:
        aborted_steps: steps that came to no sum.
        unanswered_requests: how often a client refused a request.
        verified: the clients that have verified for themselves who is in the last sum.
        published: called with every encoded `SoftLabels` that clients are sent.
    """

    def __init__(
        self, clients: Mapping[int, AnsweringClient], settings: AggregationSettings, meters: Meters
    ) -> None:
        self._clients = clients
        self._settings = settings
        self._meters = meters
        self._attendance = Attendance(settings)
        # D6: this counts aggregations, not dream steps. It never goes back, since no session may
        # use a step number twice (SPEC 2.1).
        self._step = 0
        self.aborted_steps = 0
        self.unanswered_requests = 0
        self._earlier_round_trips = 0
        self.verified: set[int] = set()
        self.published: Callable[[bytes], None] = lambda _: None

    @property
    def threshold(self) -> int:
        """How many clients must stay to the end of a step (t)."""
        return self._settings.needed

    @property
    def steps(self) -> int:
        """Number of aggregations started so far."""
        return self._step

    @property
    def round_trips(self) -> int:
        """How often the server has waited for clients so far.

        What a resumed run needs to renew its keys is not counted, here and in ``key_exchanges``.
        """
        return self._earlier_round_trips + self._round_trips

    @property
    @abstractmethod
    def _round_trips(self) -> int:
        """The subclass's own count; ``_earlier_round_trips`` corrects it in a resumed run."""

    @property
    def round_trips_per_step(self) -> float | None:
        """Mean round trips per step, key exchanges included; None before the first step."""
        return round(self.round_trips / self._step, 3) if self._step else None

    @property
    def completed_share(self) -> float | None:
        """Fraction of the steps that came to a sum; None before the first step."""
        return round(1 - self.aborted_steps / self._step, 4) if self._step else None

    @property
    def key_exchanges(self) -> int:
        """Number of key exchanges begun so far."""
        return self._attendance.key_exchanges

    @property
    def colluders(self) -> int:
        """n_C: how many clients may be on the server's side (SPEC 1.2, 1.6)."""
        return colluders(self._settings)

    @property
    def graph(self) -> MaskGraph:
        """Who masks with whom."""
        return self._settings.graph

    def sum(self, request: Asked) -> FieldSum:
        """Ask the clients and return the sum of their answers.

        Raises:
            StepAborted: fewer clients than the threshold stayed; ``aborted_steps`` counts it.
        """
        step, self._step = self._step, self._step + 1
        call = Call(step, request, encode(request))
        with self._meters.stopwatch.measure("secure_aggregation"):
            try:
                total = self._sum(call)
            except NotEnoughSurvivors as error:
                self.aborted_steps += 1
                raise StepAborted(str(error)) from None
        if asked := asked_labels(request):
            self._publish_labels(asked, total)
        return total

    def _sum(self, call: Call) -> FieldSum:
        if self._attendance.needs_keys:
            steps = max(1, self._settings.batch_steps(call.step))
            self._make_keys(call, steps, self._attendance.make_keys(steps))
        inputs, drops = self._collect(call, self._settings.step_drops(call.step))
        renew = self._attendance.renewal(call.step)
        return self._aggregate(call, inputs, drops, renew)

    def _collect(self, call: Call, drops: DropSchedule) -> tuple[Inputs, DropSchedule]:
        """Send the broadcast, and return the answers and who falls silent when.

        Only clients that will send an input compute one. A client that refuses the request is
        treated like a dropout before its input.
        """
        active = self._attendance.members
        if not active:
            raise NotEnoughSurvivors(Phase.SHARE_KEYS, 0, self._settings.needed)
        size, content = len(call.broadcast), payload(call.request)
        for client in active:
            self._meters.ledger.record("broadcast", "down", size, client=client, payload=content)
            if call.step:
                self.count_avoidable("settings repeated in every request", size - content)
        senders = [c for c in active if not drops.silent(c, Phase.MASKED_INPUT)]
        with self._meters.stopwatch.measure("answering"):
            answers = in_parallel(lambda c: self._ask(c, call), senders)
            answered = dict(zip(senders, answers, strict=True))
        silent = {c: Phase.MASKED_INPUT for c, answer in answered.items() if answer is None}
        self.unanswered_requests += len(silent)
        inputs = {c: answer for c, answer in answered.items() if answer is not None}
        return inputs, DropSchedule({**drops.drops, **silent})

    def count_avoidable(self, what: str, size: int) -> None:
        """Count bytes sent to one client that it already had or could derive."""
        self._meters.ledger.count_avoidable(what, "down", size)

    def _ask(self, client: int, call: Call) -> Mapping[str, NDArray[np.uint32]] | None:
        try:
            return self._clients[client](call.broadcast, call.step)
        except (RequestRefused, LocalProtocolError):
            return None

    def state(self) -> AggregatorState:
        """Return what a checkpoint stores: counters and attendance, but no keys."""
        return AggregatorState(
            step=self._step,
            aborted_steps=self.aborted_steps,
            unanswered_requests=self.unanswered_requests,
            round_trips=self.round_trips,
            attendance=self._attendance.state(),
        )

    def restore(self, state: AggregatorState) -> None:
        """Restore the state that `state()` returned; clients that had keys get new ones.

        The bytes of that exchange are counted, its round trips are not.

        Raises:
            ValueError: the state belongs to another roster.
        """
        self._attendance.restore(state.attendance)
        self._step = state.step
        self.aborted_steps = state.aborted_steps
        self.unanswered_requests = state.unanswered_requests
        self._renew_lost_keys()
        self._earlier_round_trips = state.round_trips - self._round_trips

    @abstractmethod
    def _renew_lost_keys(self) -> None:
        """Make new keys in place of those that the attendance lists: no checkpoint stores keys."""

    @abstractmethod
    def _make_keys(self, call: Call, steps: int, attempts: Sequence[DropSchedule]) -> None:
        """Make a key batch for ``steps`` steps; ``attempts``: who fails in each attempt."""

    @abstractmethod
    def _aggregate(
        self, call: Call, inputs: Inputs, drops: DropSchedule, renew: int
    ) -> FieldSum: ...

    def _publish_labels(self, request: LabelRequest, total: FieldSum) -> None:
        public = sections(request)
        fields = [PrimeField.for_sum(len(self._settings.roster), s.maximum) for s in public]
        message = SoftLabels(
            version=VERSION,
            round=request.round,
            batch=request.batch,
            dreams=digest(request.dreams),
            count=total.count,
            totals=tuple(
                pack(total.totals[section.name], field.bits)
                for section, field in zip(public, fields, strict=True)
            ),
        )
        encoded = encode(message)
        self.published(encoded)
        size, content = len(encoded), sum(map(len, message.totals))
        for client in self._settings.roster:
            self._meters.ledger.record("labels", "down", size, client=client, payload=content)

    def _count(
        self, phase: Phase, direction: Direction, client: int, size: int, request: Asked | None
    ) -> None:
        """Count a message; inputs that hold only labels or class means have their own name.

        The draw of the ring counts with the keys.
        """
        ledger = self._meters.ledger
        phase = Phase.ADVERTISE_KEYS if phase is Phase.DRAW_GRAPH else phase
        is_input = phase is Phase.MASKED_INPUT and direction == "up"
        if not is_input or request is None:
            ledger.record(phase, direction, size, client=client)
            return
        name = _LINES.get(type(request), phase)
        content = -(-sum(s.length * s.maximum.bit_length() for s in sections(request)) // 8)
        # Over machines, a shorter message that is no input can arrive in its place.
        ledger.record(name, direction, size, client=client, payload=min(content, size))
