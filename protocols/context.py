"""The contexts every key is bound to (SPEC 3.2).

`offline` is known before any message, `advertised` after U1, `online` once U2 is fixed and the
broadcast is known. One aggregation is a batch of one step; a batch of M steps later changes the
batch id and M in `offline`, and calls `online` once per step.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from protocols.keys import VERSION, frame
from protocols.params import AggregationParams, Section

THREAT_MODEL = b"semi-honest"
GRAPH = b"complete"
BATCH_SIZE = 1


def u64(value: int) -> bytes:
    """8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def offline(params: AggregationParams) -> bytes:
    """off0: binds session, batch, threat model, graph, threshold and roster; 32 bytes."""
    agreed = frame(THREAT_MODEL, GRAPH, u64(params.threshold))
    roster = b"".join(map(u64, params.roster))
    return _digest(b"off", params.session, u64(params.step), u64(BATCH_SIZE), agreed, roster)


def advertised(off0: bytes, keys: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """off1: binds off0 and every advertisement of U1; 32 bytes.

    Args:
        off0: result of `offline`.
        keys: (client, channel key, mask key) in ascending client order.
    """
    listed = b"".join(u64(client) + channel + mask for client, channel, mask in keys)
    return _digest(b"off1", off0, listed)


def online(off1: bytes, params: AggregationParams, active: bytes) -> bytes:
    """on_t: binds off1, step, kind, sections, active set and broadcast; 32 bytes.

    Args:
        off1: result of `advertised`.
        params: gives step, kind, sections with their fields and clips, and broadcast digest.
        active: bitmap of the clients that mask with each other (U2).
    """
    sections = frame(*(_section(params, section) for section in params.sections))
    step, kind = u64(params.step), params.kind.encode()
    return _digest(b"on", off1, step, kind, sections, active, params.broadcast_digest)


def _section(params: AggregationParams, section: Section) -> bytes:
    field = params.field(section)
    numbers = (section.length, section.bits, field.bits, field.p)
    return frame(section.name.encode(), *map(u64, numbers), struct.pack(">d", section.clip))


def _digest(label: bytes, *items: bytes) -> bytes:
    return hashlib.sha256(frame(VERSION, label, *items)).digest()
