"""The contexts that every key is bound to (SPEC 3.2).

A context is a hash over everything that two parties must agree on. Parties that disagree derive
other keys: their bundles do not open, or their masks do not cancel. `offline` is known before any
message, `advertised` after U1, `online` once the step's active set and broadcast are known.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from protocols.params import BatchParams, Section, Task
from protocols.primitives.field import PrimeField
from protocols.primitives.keys import VERSION, digest, frame, u64


@lru_cache(maxsize=8)
def offline(batch: BatchParams) -> bytes:
    """Return off0, 32 bytes: it binds all of `BatchParams` (SPEC 3.2)."""
    sparse = batch.chosen or batch.ring
    numbers = () if sparse is None else (u64(sparse.degree), u64(sparse.threshold))
    graph = b"k-regular" if batch.graph == "ring" else batch.graph.encode()
    agreed = frame(batch.threat_model.encode(), graph, u64(batch.threshold), *numbers)
    identities = batch.identities or (b"",) * batch.n
    members = zip(batch.roster, identities, strict=True)
    roster = b"".join(u64(client) + identity for client, identity in members)
    return digest("off", batch.session, u64(batch.batch), u64(batch.steps), agreed, roster)


def advertised(off0: bytes, advertisements: Iterable[tuple[int, bytes]]) -> bytes:
    """Return off1, 32 bytes: it binds off0 and every advertisement of U1 (SPEC 3.2).

    Args:
        off0: result of `offline`.
        advertisements: (client, encoded Advertisement) in ascending client order.
    """
    return digest("off1", off0, *(frame(u64(client), data) for client, data in advertisements))


def drawn(off0: bytes, committed: Mapping[int, bytes], nonces: Mapping[int, bytes]) -> bytes:
    """Return off1 of the ring, 32 bytes: it binds off0, the commitments of C and the nonces of U1.

    Args:
        off0: result of `offline`.
        committed: client -> commitment, ascending.
        nonces: client -> nonce, ascending.
    """
    lists = (frame(*(u64(u) + value for u, value in m.items())) for m in (committed, nonces))
    return digest("off1", off0, *lists)


def listed(off0: bytes, members: bytes) -> bytes:
    """Return off1 of the chosen graph, 32 bytes: it binds off0 and the bitmap of U1.

    It need not bind the keys. An honest client signs one advertisement a batch, under off0.
    """
    return digest("off1", off0, members)


def edge(off1: bytes, ends: Mapping[int, bytes]) -> bytes:
    """Return the context of two neighbours on a sparse graph: off1 and both advertisements."""
    return digest("edge", off1, *(frame(u64(u), ends[u]) for u in sorted(ends)))


def nonce_commitments(off0: bytes, nonces: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return what clients show of their nonces before they know the nonces of others (SPEC 3.7).

    Args:
        off0: result of `offline`.
        nonces: client -> nonce, 32 bytes.

    Returns:
        Client -> D("nonce", off0, client, nonce), 32 bytes.
    """
    # Every client checks all commitments: hash the common start once, not n times.
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


def online(
    off1: bytes,
    key: int,
    task: Task,
    n: int,
    active: bytes,
    *,
    lost: Iterable[tuple[int, int]] = (),
) -> bytes:
    """Return `on`, 32 bytes: the hash of everything that a step depends on (SPEC 3.2).

    It binds the broadcast so that clients which saw different broadcasts give no sum (SPEC 3.2).

    Args:
        off1: result of `advertised`.
        key: which of the batch's M key steps is used.
        task: gives step, kind, sections and broadcast digest.
        n: roster size; decides the fields.
        active: bitmap of the clients that mask with each other.
        lost: pairs of roster indices that do not, as the request lists them. If two ends disagreed
            about that, their masks would not cancel.
    """
    parts = zip(task.sections, task.fields(n), strict=True)
    sections = frame(*(_section(section, field) for section, field in parts))
    numbers = u64(key), u64(task.step)
    pairs = b"".join(index.to_bytes(4, "big") for pair in lost for index in pair)
    return digest(
        "on", off1, *numbers, task.kind.encode(), sections, active, pairs, task.broadcast_digest
    )


def survivors(on: bytes, bitmap: bytes) -> bytes:
    """Return the context of a step and its survivor set U3, 32 bytes.

    Clients of the malicious model sign it, and unmask only with t signatures on their own set: a
    server that tells clients different sets gets shares for one of them at most (SPEC 1.6, 6.8).
    """
    return digest("survivors", on, bitmap)


def _section(section: Section, field: PrimeField) -> bytes:
    numbers = (section.length, section.maximum, field.bits, field.p)
    return frame(section.name.encode(), *map(u64, numbers), struct.pack(">d", section.clip))
