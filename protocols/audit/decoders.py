"""Properties of decoders: one encoding per message, typed errors, memory bounded by the input."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from protocols import messages, signing
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome, PropertyFailed
from protocols.audit.subject import Subject
from protocols.client.durable import DurableClient
from protocols.driver import run_aggregation
from protocols.errors import DecodeError, LocalProtocolError, SecAggError
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    BundleReport,
    ChosenAdvertisement,
    ChosenDirectory,
    ConsistencyProof,
    KeyDirectory,
    MaskedInput,
    Message,
    Nonce,
    NonceCommitments,
    RingAdvertisement,
    RingDirectory,
    Signed,
    StepRequest,
    SurvivorSet,
)
from protocols.params import AggregationParams
from protocols.phases import DropSchedule, Phase
from protocols.primitives.packing import pack, packed_size, unpack
from protocols.signing import Credentials

_T = TypeVar("_T")

CLIENTS = 4
# Memory that a decoder may use: a fixed part, and a part for each byte of its input. A header that
# claims a long list must not make it allocate that list.
ROOM = 1 << 16
PER_BYTE = 64


@dataclass(frozen=True, slots=True)
class Samples:
    """One encoded message of every kind, and the parameters that decode them."""

    params: AggregationParams
    encoded: dict[type[Message], bytes]

    def decode(self, kind: type[Message], data: bytes) -> Message:
        """Decode bytes as a message of this kind."""
        return messages.decode(data, kind, self.params.batch, self.params.task)


def samples() -> Samples:
    """Return one message of every kind, most from a run of the malicious model with a dropout.

    Messages that such a run does not send (sparse graphs, reports) are made up.
    """
    batch = some.make_batch(CLIENTS, "malicious")
    roster = batch.roster
    task = some.make_task(some.section("g", 5, 15), some.section("h", 3, 2047))
    params = some.params_of(batch, task)
    inputs = {u: {s.name: np.ones(s.length, np.uint32) for s in task.sections} for u in roster}
    down: dict[Phase, type[Message]] = {
        Phase.ADVERTISE_KEYS: KeyDirectory,
        Phase.SHARE_KEYS: BundleDelivery,
        Phase.CONSISTENCY: ConsistencyProof,
    }
    found: dict[type[Message], bytes] = {}

    def tap(phase: Phase, direction: str, client: int, data: bytes) -> None:
        del client
        if direction == "up":
            upload, body, _ = signing.unwrap(data, batch, task)
            found.setdefault(type(upload), body)
            found.setdefault(Signed, data)
        elif phase == Phase.MASKED_INPUT:  # first the request, then its outcome U3
            found.setdefault(SurvivorSet if MaskedInput in found else StepRequest, data)
        else:
            found.setdefault(down[phase], data)

    run_aggregation(
        inputs,
        params,
        drops=DropSchedule({roster[0]: Phase.MASKED_INPUT}),
        entropy=some.seeded_entropy(b"samples"),
        tap=tap,
        credentials=Credentials(some.signing_keys(roster)),
    )
    rare = (
        BundleReport(b"\2"),
        RingAdvertisement(b"a" * 32, (b"b" * 32,), b"c" * 32, b"d" * 32),
        NonceCommitments(b"\5", (b"a" * 32, b"b" * 32)),
        Nonce(b"n" * 32),
        RingDirectory(b"\3", (b"a" * 32, b"b" * 32), (b"keys",)),
        ChosenAdvertisement(b"a" * 32, (b"b" * 32,), b"c" * 32, b"\3"),
        ChosenDirectory(b"\7", b"\3", (b"keys", b"more")),
    )
    found |= {type(message): messages.encode(message) for message in rare}
    return Samples(params, found)


def codec(examples: int, subject: Subject) -> Outcome:
    """Every prefix, bit flip, extension and other tag of a message is an error or another message.

    Another message must encode to exactly the changed bytes. Checked for every kind of message.
    Source: SPEC 5.1, 5.2, D24.
    """
    del examples, subject  # exhaustive
    checks, sample = Checks(), samples()
    kinds = set(_kinds())
    checks.that(set(sample.encoded) == kinds, f"no sample of {kinds - set(sample.encoded)}")
    tried = 0
    for kind, data in sample.encoded.items():
        original = sample.decode(kind, data)
        checks.that(messages.encode(original) == data, f"{kind.__name__}: another encoding")
        for what, changed in _broken(data):
            name = f"{kind.__name__}, {what}"
            checks.refused(name, DecodeError, sample.decode, kind, changed)
            tried += 1
        for bit in range(8 * len(data)):
            flipped = some.flip(data, bit)
            found = _outcome(DecodeError, sample.decode, kind, flipped)
            good = found is None or (found != original and messages.encode(found) == flipped)
            checks.that(good, f"{kind.__name__}, bit {bit}: the same message")
            tried += 1
        for other in kinds - {kind}:
            name = f"{kind.__name__} as {other.__name__}"
            checks.refused(name, DecodeError, sample.decode, other, data)
    return Outcome(tried, checks.made)


def fuzzing(examples: int, subject: Subject) -> Outcome:
    """Every decoder answers mutated and spliced bytes with typed errors only, in little memory.

    Decoders: every message, Signed uploads, stored records, bitmaps, packed vectors. Accepted bytes
    encode again to the same bytes. Memory stays below 64 KiB plus 64 times the input.
    Source: SPEC 5.2.
    """
    checks, sample = Checks(), samples()
    targets = _targets(sample, subject)
    encoded = {kind.__name__: data for kind, data in sample.encoded.items()}

    def check(data: DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(targets)))
        valid, errors, decode = targets[name]
        changed = data.draw(some.mutations(valid, encoded))
        tracemalloc.start()
        try:
            again = _outcome(errors, decode, changed)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        checks.that(again in (None, changed), f"{name}: {changed.hex()} is not canonical")
        checks.that(peak <= ROOM + PER_BYTE * len(changed), f"{name}: {peak} bytes of memory")

    return Outcome(some.explore(20 * examples, check), checks.made)


_Target = tuple[bytes, tuple[type[SecAggError], ...], Callable[[bytes], bytes]]


def _targets(sample: Samples, subject: Subject) -> dict[str, _Target]:
    """Return name -> valid bytes, allowed errors, a function that decodes and encodes again."""
    batch, task = sample.params.batch, sample.params.task
    typed = (DecodeError,)

    def message(kind: type[Message]) -> Callable[[bytes], bytes]:
        return lambda data: messages.encode(sample.decode(kind, data))

    def upload(data: bytes) -> bytes:
        body, encoding, signature = signing.unwrap(data, batch, task)
        return messages.encode(Signed(encoding, signature or b"")) if body else b""

    party = some.parties(batch)[batch.roster[0]]
    fresh = subject.client(party, some.seeded_entropy(b"record"), None)
    record = fresh.advertise_keys().record

    def stored(data: bytes) -> bytes:
        DurableClient(party, some.seeded_entropy(b""), data)
        return data  # a record need not be canonical: only its owner writes it

    def bitmap(data: bytes) -> bytes:
        return messages.encode_set(messages.decode_set(data, batch.roster), batch.roster)

    length, bits = 5, 11

    def packed(data: bytes) -> bytes:
        return pack(unpack(data, bits, length), bits)

    return {
        **{k.__name__: (data, typed, message(k)) for k, data in sample.encoded.items()},
        "signed upload": (sample.encoded[Signed], typed, upload),
        "bare upload": (sample.encoded[Advertisement], typed, lambda data: messages.encode(
            messages.decode_upload(data, batch, task))),
        "record": (record, (LocalProtocolError,), stored),
        "bitmap": (b"\5", typed, bitmap),
        "packed vector": (bytes(packed_size(length, bits)), typed, packed),
    }  # fmt: skip


def _kinds() -> list[type[Message]]:
    return [*Message.__subclasses__(), *Advertisement.__subclasses__()]


def _broken(data: bytes) -> list[tuple[str, bytes]]:
    """Return broken forms of a message: prefixes, extensions, other tags, longer headers."""
    prefixes = [(f"{end} bytes of it", data[:end]) for end in range(len(data))]
    longer = [("extended", data + extra) for extra in (b"\0", b"\xc0", b"\x90", data)]
    tags = [
        (f"tag {tag:#04x}", data[:1] + bytes([tag]) + data[2:])
        for tag in range(128)
        if tag != data[1]
    ]
    count = data[0] & 15
    headers = [
        ("long array header", b"\xdc\0" + bytes([count]) + data[1:]),
        ("long tag", data[:1] + b"\xcc" + data[1:]),
    ]
    return prefixes + longer + tags + headers


def _outcome(
    errors: type[SecAggError] | tuple[type[SecAggError], ...],
    call: Callable[..., _T],
    *arguments: object,
) -> _T | None:
    """Return what a call returns, None if it raises one of the errors; others are a failure."""
    try:
        return call(*arguments)
    except errors:
        return None
    except Exception as error:
        raise PropertyFailed(f"a decoder raised {type(error).__name__}: {error}") from error
