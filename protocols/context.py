"""The contexts every key is bound to (SPEC 3.2).

`offline` is known before any message, `advertised` after U1, `online` once the step's active set
is fixed and its broadcast is known.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from protocols.params import BatchParams, Section, Task
from protocols.primitives.field import PrimeField
from protocols.primitives.keys import VERSION, frame


def u64(value: int) -> bytes:
    """8 bytes, big-endian."""
    return value.to_bytes(8, "big")


@lru_cache(maxsize=8)
def offline(batch: BatchParams) -> bytes:
    """off0: binds session, batch, M, threat model, graph, threshold, roster and identities."""
    ring = batch.ring
    numbers = () if ring is None else (u64(ring.degree), u64(ring.threshold))
    graph = b"complete" if ring is None else b"k-regular"
    agreed = frame(batch.threat_model.encode(), graph, u64(batch.threshold), *numbers)
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


def drawn(off0: bytes, committed: Mapping[int, bytes], nonces: Mapping[int, bytes]) -> bytes:
    """off1 on the ring: binds off0, every nonce commitment of C and every nonce of U1; 32 bytes.

    Args:
        off0: result of `offline`.
        committed: client -> commitment, ascending.
        nonces: client -> nonce, ascending.
    """
    lists = (frame(*(u64(u) + value for u, value in m.items())) for m in (committed, nonces))
    return digest("off1", off0, *lists)


def edge(off1: bytes, ends: Mapping[int, bytes]) -> bytes:
    """Binds off1 and the advertisements of two neighbours on the ring; 32 bytes (SPEC 3.2)."""
    return digest("edge", off1, *(frame(u64(u), ends[u]) for u in sorted(ends)))


def nonce_commitments(off0: bytes, nonces: Mapping[int, bytes]) -> dict[int, bytes]:
    """What clients show of their nonces before they know those of others (SPEC 3.7).

    Args:
        off0: result of `offline`.
        nonces: client -> nonce.

    Returns:
        Client -> D("nonce", off0, client, nonce), 32 bytes; what all have in common is
        hashed once.
    """
    start = hashlib.sha256(frame(VERSION, b"nonce", off0))
    committed = {}
    for client, nonce in nonces.items():
        state = start.copy()
        state.update(frame(u64(client), nonce))
        committed[client] = state.digest()
    return committed


def nonce_commitment(off0: bytes, client: int, nonce: bytes) -> bytes:
    """Return the nonce commitment of one client (SPEC 3.7)."""
    return nonce_commitments(off0, {client: nonce})[client]


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
