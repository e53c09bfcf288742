"""A whole aggregation in memory: the executable form of SPEC 6."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protocols.client import ClientSession, Inputs
from protocols.errors import LocalProtocolError
from protocols.keys import Entropy
from protocols.params import AggregationParams, Phase
from protocols.server import ServerSession

Direction = Literal["up", "down"]
Answer = Callable[[int], bytes]
Tap = Callable[[Phase, Direction, int, bytes], None]
ByteCounts = dict[Phase, dict[Direction, dict[int, int]]]


@dataclass(frozen=True, slots=True)
class DropSchedule:
    """Client -> the phase whose message it no longer sends; nothing comes from it afterwards."""

    drops: Mapping[int, Phase] = field(default_factory=dict)

    def silent(self, client: int, phase: Phase) -> bool:
        """Whether the client has fallen silent by this phase."""
        phases = list(Phase)
        return client in self.drops and phases.index(self.drops[client]) <= phases.index(phase)


@dataclass(frozen=True, slots=True)
class AggregationResult:
    """What the server knows at the end, and what it cost.

    Attributes:
        totals: section name -> uint32, shape (length,), the exact integer sum.
        survivors: clients whose inputs are in it, ascending.
        bytes: phase -> "up" or "down" -> client -> bytes of encoded messages.
    """

    totals: dict[str, NDArray[np.uint32]]
    survivors: tuple[int, ...]
    bytes: ByteCounts


def run_aggregation(
    inputs: Mapping[int, Inputs],
    params: AggregationParams,
    *,
    drops: DropSchedule = DropSchedule(),
    entropy: Entropy | None = None,
    tap: Tap | None = None,
) -> AggregationResult:
    """Run all four rounds between real sessions over real bytes (SPEC 6).

    Args:
        inputs: client -> section name -> unsigned integers of shape (length,), below 2^bits;
            not needed of clients that drop at or before the masked input.
        params: agreed by all parties.
        drops: who falls silent, and when.
        entropy: source of all secrets; None asks the operating system.
        tap: called with every message sent, also in an aggregation that then fails.

    Raises:
        NotEnoughSurvivors: fewer than the threshold in some round; nothing was summed.
        LocalProtocolError: an input is missing or does not fit.
    """
    counts: ByteCounts = {phase: {"up": {}, "down": {}} for phase in Phase}
    server = ServerSession(params)
    clients = {u: ClientSession(params, u, entropy or os.urandom) for u in params.roster}

    def carry(phase: Phase, direction: Direction, client: int, data: bytes) -> bytes:
        counts[phase][direction][client] = len(data)
        if tap is not None:
            tap(phase, direction, client, data)
        return data

    def run_round(phase: Phase, waiting: Iterable[int], answer: Answer) -> dict[int, bytes]:
        for u in waiting:
            if not drops.silent(u, phase):
                server.receive(u, carry(phase, "up", u, answer(u)))
        return {u: carry(phase, "down", u, m) for u, m in server.end_round().items()}

    def masked_input(u: int) -> bytes:
        if u not in inputs:
            raise LocalProtocolError(f"client {u} has no input and does not drop")
        return clients[u].masked_input(bundles[u], inputs[u])

    keys = run_round(Phase.ADVERTISE_KEYS, params.roster, lambda u: clients[u].advertise_keys())
    bundles = run_round(Phase.SHARE_KEYS, keys, lambda u: clients[u].share_keys(keys[u]))
    survivors = run_round(Phase.MASKED_INPUT, bundles, masked_input)
    run_round(Phase.UNMASKING, survivors, lambda u: clients[u].unmask(survivors[u]))
    return AggregationResult(dict(server.result.totals), server.result.survivors, counts)
