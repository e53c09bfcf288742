"""The contexts every key is bound to (SPEC 3.2).

`offline` is known before any message, `advertised` after U1, `online` once the step's active set
is fixed and its broadcast is known.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from protocols.field import PrimeField
from protocols.keys import VERSION, frame
from protocols.params import BatchParams, Section, Task

GRAPH = b"complete"


def u64(value: int) -> bytes:
    """8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def offline(batch: BatchParams) -> bytes:
    """off0: binds session, batch, M, threat model, graph, threshold, roster and identities."""
    agreed = frame(batch.threat_model.encode(), GRAPH, u64(batch.threshold))
    identities = batch.identities or (b"",) * batch.n
    members = zip(batch.roster, identities, strict=True)
    roster = b"".join(u64(client) + identity for client, identity in members)
    return digest("off", batch.session, u64(batch.batch), u64(batch.steps), agreed, roster)


def advertised(off0: bytes, advertisements: Iterable[tuple[int, bytes]]) -> bytes:
    """off1: binds off0 and every advertisement of U1; 32 bytes.

    Args:
        off0: result of `offline`.
        advertisements: (client, encoded Advertisement) in ascending client order.
    """
    return digest("off1", off0, *(frame(u64(client), data) for client, data in advertisements))


def online(off1: bytes, key: int, task: Task, n: int, active: bytes) -> bytes:
    """on: binds off1, key step, step, kind, sections, active set and broadcast; 32 bytes.

    Args:
        off1: result of `advertised`.
        key: which of the batch's M key steps is used.
        task: gives step, kind, sections and broadcast digest.
        n: roster size; decides the fields.
        active: bitmap of the clients that mask with each other.
    """
    parts = zip(task.sections, task.fields(n), strict=True)
    sections = frame(*(_section(section, field) for section, field in parts))
    numbers = u64(key), u64(task.step)
    return digest("on", off1, *numbers, task.kind.encode(), sections, active, task.broadcast_digest)


def survivors(on: bytes, bitmap: bytes) -> bytes:
    """Binds a step and its survivor set U3: what clients compare before they unmask; 32 bytes."""
    return digest("survivors", on, bitmap)


def _section(section: Section, field: PrimeField) -> bytes:
    numbers = (section.length, section.maximum, field.bits, field.p)
    return frame(section.name.encode(), *map(u64, numbers), struct.pack(">d", section.clip))


def digest(label: str, *items: bytes) -> bytes:
    """SHA-256 of a label and an unambiguous list of byte strings (SPEC 3.1)."""
    return hashlib.sha256(frame(VERSION, label.encode(), *items)).digest()
