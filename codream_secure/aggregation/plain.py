"""Aggregation without masks, for comparison only: the server sees every input."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.aggregator import Aggregator, Call, FieldSum, Inputs
from codream_secure.aggregation.requests import VERSION
from codream_secure.aggregation.sections import sections
from protocols.phases import DropSchedule, Phase
from protocols.primitives.packing import pack


class ClearInput(msgspec.Struct, frozen=True, array_like=True, tag="clear_input"):
    """A client's message under ``--no-secure``: its quantized sections, packed, in the clear."""

    version: int
    step: int
    sections: tuple[bytes, ...]


class PlainAggregator(Aggregator):
    """Sums without masks, for comparison only: the server sees every client's input."""

    @property
    def _round_trips(self) -> int:
        return self.steps

    def _renew_lost_keys(self) -> None:
        """Do nothing: there are no keys."""

    def _make_keys(self, call: Call, steps: int, attempts: Sequence[DropSchedule]) -> None:
        """Do nothing: `Attendance` alone tracks who would have keys."""

    def _aggregate(self, call: Call, inputs: Inputs, drops: DropSchedule, renew: int) -> FieldSum:
        self._attendance.finish_step(drops, renews=bool(renew))
        wanted = sections(call.request)
        for client, values in inputs.items():
            packed = tuple(pack(values[s.name], s.maximum.bit_length()) for s in wanted)
            message = ClearInput(version=VERSION, step=call.step, sections=packed)
            size = len(msgspec.msgpack.encode(message))
            self._count(Phase.MASKED_INPUT, "up", client, size, call.request)
        totals = {s.name: self._total([v[s.name] for v in inputs.values()]) for s in wanted}
        return FieldSum(totals, len(inputs), wanted)

    @staticmethod
    def _total(vectors: list[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        # In 64 bits, then narrowed: a sum fits 32 bits, as the protocol's field requires.
        return np.asarray(np.sum(vectors, axis=0, dtype=np.uint64), dtype=np.uint32)
