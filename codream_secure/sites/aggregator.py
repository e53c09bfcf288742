"""The aggregator of a run over sites; its journal records every sum."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.aggregator import Aggregator, Call, FieldSum, Inputs, Meters
from codream_secure.aggregation.byte_ledger import Direction
from codream_secure.aggregation.requests import VERSION, EvaluateRequest, digest, encode
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.sites.history import bound
from codream_secure.sites.journal import Journal
from codream_secure.sites.peers import Sites
from codream_secure.sites.record import Record, aborted
from codream_secure.sites.server_state import StepRecord
from codream_secure.sites.sums import RemoteSums
from codream_secure.sites.wire import Labels, protocol_step
from codream_secure.storage.checkpoint import AggregatorState
from protocols.errors import NotEnoughSurvivors
from protocols.params import Task, Terms
from protocols.phases import DropSchedule, Phase

Totals = Mapping[str, NDArray[np.uint32]]


class RemoteAggregator(Aggregator):
    """The aggregator of a run over sites.

    Args:
        sites: the sites.
        settings: roster, threshold, threat model.
        meters: count bytes and seconds.
        session: 32 public bytes of this run.
        identities: public keys in roster order, in the malicious model.
        record: the session's, which every sum is bound to and added to.
        journal: has the sums of an earlier process, and records those of this one.

    Attributes:
        begun: number of sums so far, evaluations included.
        labels: the round's summed labels, in the order of its dream batches.
    """

    def __init__(
        self,
        sites: Sites,
        settings: AggregationSettings,
        meters: Meters,
        *,
        session: bytes,
        identities: tuple[bytes, ...],
        record: Record,
        journal: Journal,
    ) -> None:
        super().__init__({}, settings, meters)
        terms = Terms(
            session=session,
            roster=settings.roster,
            threshold=settings.needed,
            threat_model=settings.threat_model,
            identities=identities,
            chosen=settings.graph.chosen,
            rejoin=settings.rejoin,
        )
        self._sites, self._journal, self._record = sites, journal, record
        self._sums = RemoteSums(
            sites,
            terms,
            record,
            self._message,
            first_batch=journal.next_batch,
            note_batch=journal.note_batch,
        )
        self._call: Call | None = None
        self._sent: list[tuple[Phase, Direction, int, int]] = []
        self._asked: set[int] = set()
        self.begun = 0
        self.labels: list[Labels] = []
        self.published = self._note_labels

    @property
    def next_step(self) -> int:
        """The protocol's number of the next step of dreaming."""
        return protocol_step(self.steps)

    def evaluate(self, number: int) -> tuple[float, int] | None:
        """Ask for the sum of the accuracies of the sites' own models after a round.

        Returns:
            The mean accuracy (0 to 1) and the number of sites in it; None if no site answered, or
            too few did.
        """
        request = EvaluateRequest(version=VERSION, round=number)
        call = Call(self.steps, request, encode(request))
        try:
            # An odd number, between two steps of dreaming: see `wire.protocol_step`.
            totals = self._numbered(call, self.next_step - 1).totals["accuracy"]
        except NotEnoughSurvivors:
            return None
        correct, sites = (int(total) for total in totals)
        return (correct / EvaluateRequest.SCALE / sites, sites) if sites else None

    def restore(self, state: AggregatorState) -> None:
        """Restore the counters; keys are made when the next step needs them."""
        super().restore(state)
        self._earlier_round_trips = 0  # the sites' traffic has them

    @property
    def _round_trips(self) -> int:
        return self._sites.traffic.round_trips

    def _renew_lost_keys(self) -> None:
        """Do nothing: keys are made when the next step needs them."""

    def _make_keys(self, call: Call, steps: int, attempts: object) -> None:
        """Not used: `_sum` makes keys."""

    def _aggregate(self, call: Call, inputs: Inputs, drops: DropSchedule, renew: int) -> FieldSum:
        raise NotImplementedError

    def _sum(self, call: Call) -> FieldSum:
        return self._numbered(call, protocol_step(call.step))

    def _numbered(self, call: Call, number: int) -> FieldSum:
        """Sum with this number of the protocol, or replay the recorded sum after a restart."""
        self._call, self._sent, self._asked = call, [], set()
        public = bound(self._record.digest, call.broadcast)
        task = replace(call.task, step=number, broadcast_digest=digest(public))
        position, self.begun = self.begun, self.begun + 1
        if known := self._journal.step(number, task.broadcast_digest):
            return self._replayed(call, number, known)
        self._journal.begin_step(number, task.broadcast_digest, self._sites.traffic)
        try:
            result = self._sums.sum(
                task,
                public,
                max(1, self._settings.batch_steps(position)),
                next_steps=self._settings.batch_steps(position + 1),
            )
        except NotEnoughSurvivors:
            self._end_step(task, None, 0)
            raise
        totals, count = dict(result.totals), len(result.survivors)
        self._end_step(task, totals, count)
        return FieldSum(totals, count, task.sections)

    def _note_labels(self, sums: bytes) -> None:
        """Keep summed labels for what sites learn from, and the request for sites that lack it."""
        item, call = self._record.last_step, self._call
        if call is None:
            raise TypeError("labels come from a call")
        self.labels.append(Labels(item.entry.step, sums, item.proof))
        self._journal.keep_request(item.entry.request, call.broadcast)

    def _end_step(self, task: Task, totals: Totals | None, count: int) -> None:
        self._journal.end_step(
            task.step,
            task.broadcast_digest,
            totals=totals,
            count=count,
            messages=self._sent,
            traffic=self._sites.traffic,
            listed=self._record.last_step,
        )

    def _replayed(self, call: Call, number: int, known: StepRecord) -> FieldSum:
        """Return the sum that an earlier process recorded, and count its messages again."""
        for message in known.messages:
            self._message(*message)
        totals = known.sums()
        self._record.add(known.listed or aborted(number, call.broadcast))
        if totals is None:
            raise NotEnoughSurvivors(Phase.UNMASKING, 0, self.threshold)
        return FieldSum(totals, known.count, call.task.sections)

    def _message(self, phase: Phase, direction: Direction, site: int, size: int) -> None:
        call = self._call
        self._sent.append((phase, direction, site, size))
        self._count(phase, direction, site, size, None if call is None else call.request)
        if call is None or (phase, direction) != (Phase.MASKED_INPUT, "down"):
            return
        # The broadcast travels with the request. The second message of this round to a site, which
        # ends the round, has none.
        if site not in self._asked:
            self._asked.add(site)
            size = len(self._record.digest) + len(call.broadcast)
            self._meters.ledger.record("broadcast", "down", size, client=site)
