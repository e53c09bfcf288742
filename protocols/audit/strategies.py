"""Hypothesis strategies and small builders; needs the extra `audit`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy
from numpy.typing import NDArray

from protocols import messages
from protocols.client.states import Party
from protocols.messages import StepRequest
from protocols.pairs import Pairs
from protocols.pairs import encode as encode_pairs
from protocols.params import (
    AggregationParams,
    BatchParams,
    Chosen,
    Section,
    Task,
    default_threshold,
)
from protocols.phases import DropSchedule, ThreatModel
from protocols.phases import Phase as Round
from protocols.policy import Policy
from protocols.primitives.keys import Entropy, SigningKey
from protocols.signing import Credentials

Vectors = dict[str, NDArray[np.unsignedinteger]]

MODELS: tuple[ThreatModel, ...] = ("semi-honest", "malicious")

WHO = "who"
"""The section whose input is one-hot, so that its sum names the clients in it."""


def profile(examples: int) -> settings:
    """Return the settings of every search: nothing is written to disk, failures stay short."""
    return settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def explore(examples: int, check: Callable[[DataObject], None]) -> int:
    """Run a check on drawn data, and return how often it ran."""
    ran = 0

    @profile(examples)
    @given(st.data())
    def search(data: DataObject) -> None:
        nonlocal ran
        check(data)
        ran += 1  # not of examples that Hypothesis gave up on

    search()
    return ran


def section(name: str, length: int, maximum: int, clip: float = 1.0) -> Section:
    """Return a section with inputs 0..maximum."""
    return Section(name=name, length=length, maximum=maximum, clip=clip)


def signing_keys(roster: tuple[int, ...]) -> dict[int, SigningKey]:
    """Return identities whose secrets everybody can compute; for tests only."""
    return {u: SigningKey.from_private_bytes(u.to_bytes(32, "big")) for u in roster}


def seeded_entropy(seed: bytes) -> Entropy:
    """Return SHA-256 in counter mode as entropy: a falsifying example can be replayed."""
    counter = 0

    def entropy(size: int) -> bytes:
        nonlocal counter
        out = b""
        while len(out) < size:
            out += hashlib.sha256(seed + counter.to_bytes(8, "big")).digest()
            counter += 1
        return out[:size]

    return entropy


seeds: SearchStrategy[bytes] = st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "big"))


def make_batch(
    n: int,
    threat_model: ThreatModel,
    *,
    steps: int = 1,
    threshold: int | None = None,
    number: int = 1,
    session: bytes = bytes(32),
    chosen: Chosen | None = None,
) -> BatchParams:
    """Return a batch of n clients 10, 13, 16 and so on: ids are not roster indices."""
    roster = tuple(range(10, 10 + 3 * n, 3))
    keys = signing_keys(roster) if threat_model == "malicious" else {}
    return BatchParams(
        session=session,
        batch=number,
        steps=steps,
        roster=roster,
        threshold=default_threshold(n) if threshold is None else threshold,
        threat_model=threat_model,
        identities=tuple(key.public for key in keys.values()),
        chosen=chosen,
    )


def make_task(*sections: Section, step: int = 0, broadcast: int = 0, kind: str = "sum") -> Task:
    """Return a task whose broadcast digest is one repeated byte."""
    return Task(step=step, kind=kind, sections=sections, broadcast_digest=bytes([broadcast]) * 32)


def parties(batch: BatchParams, policy: Policy | None = None) -> dict[int, Party]:
    """Return all parties of a batch under one policy; malicious: the default one if None."""
    keys = signing_keys(batch.roster) if batch.malicious else {}
    bounds = policy or (Policy() if batch.malicious else None)
    return {u: Party(batch, u, keys.get(u), bounds) for u in batch.roster}


def one_hot(roster: tuple[int, ...], client: int) -> Vectors:
    """Return an input that is 1 at the client's index in the roster, else 0."""
    vector = np.zeros(len(roster), dtype=np.uint32)
    vector[roster.index(client)] = 1
    return {WHO: vector}


def zeros(length: int) -> NDArray[np.uint32]:
    """Return an input of zeros."""
    return np.zeros(length, dtype=np.uint32)


def flip(data: bytes, bit: int) -> bytes:
    """Return the data with one bit changed; bit i % 8 of byte i // 8."""
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def named(roster: tuple[int, ...], total: NDArray[np.uint32]) -> list[int]:
    """Return the clients that a sum of one-hot inputs names, each as often as it is counted."""
    counts = zip(roster, total.tolist(), strict=True)
    return [client for client, count in counts for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Case:
    """One aggregation with one-hot inputs and a second section of random or extreme inputs."""

    params: AggregationParams
    inputs: dict[int, Vectors]
    credentials: Credentials | None

    def __repr__(self) -> str:
        p = self.params
        return f"{p.n} clients, t = {p.threshold}, {p.threat_model}"

    def expected(self, survivors: tuple[int, ...]) -> dict[str, list[int]]:
        """Return the sums over some clients, by integer addition."""
        return {
            s.name: [
                sum(int(self.inputs[u][s.name][i]) for u in survivors) for i in range(s.length)
            ]
            for s in self.params.sections
        }


@st.composite
def cases(draw: st.DrawFn, threat_model: ThreatModel) -> Case:
    """Draw an aggregation of 3 to 10 clients with any ids and any allowed threshold."""
    roster = tuple(sorted(draw(st.sets(st.integers(0, 2**64 - 1), min_size=3, max_size=10))))
    n, most, length = len(roster), draw(st.integers(1, 2**16)), draw(st.integers(1, 30))
    keys = signing_keys(roster) if threat_model == "malicious" else {}
    params = AggregationParams(
        session=draw(st.binary(min_size=32, max_size=32)),
        step=draw(st.integers(0, 2**64 - 1)),
        kind="sum",
        roster=roster,
        threshold=draw(st.integers(max(n // 2 + 1, 2), n)),
        sections=(section(WHO, n, 1), section("x", length, most)),
        broadcast_digest=bytes(32),
        threat_model=threat_model,
        identities=tuple(key.public for key in keys.values()),
    )
    top, seed = draw(st.booleans()), draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    values = {u: _vector(generator, length, most, top=top) for u in roster}
    inputs = {u: {**one_hot(roster, u), "x": values[u]} for u in roster}
    return Case(
        params, inputs, Credentials(keys, Policy(min_clients=2, min_honest=1)) if keys else None
    )


def _vector(
    generator: np.random.Generator, length: int, largest: int, *, top: bool
) -> NDArray[np.unsignedinteger]:
    if top:
        return np.full(length, largest, dtype=np.uint32)
    return generator.integers(0, largest, length, dtype=np.uint32, endpoint=True)


def drop_schedules(
    case: Case, phases: tuple[Round, ...], most: int
) -> SearchStrategy[DropSchedule]:
    """Draw at most `most` clients that fall silent, each at some phase."""
    ids, when = st.sampled_from(case.params.roster), st.sampled_from(phases)
    return st.dictionaries(ids, when, max_size=most).map(DropSchedule)


def member_sets(batch: BatchParams) -> SearchStrategy[tuple[int, ...]]:
    """Draw sets of clients that a server may name, most of them large enough to pass."""
    sizes = st.sampled_from([batch.threshold, batch.threshold, batch.n, batch.threshold - 1])
    return sizes.flatmap(
        lambda size: st.permutations(batch.roster).map(lambda ids: tuple(sorted(ids[:size])))
    )


def step_requests(batch: BatchParams) -> SearchStrategy[StepRequest]:
    """Draw requests with any key step, active set and lost pairs."""
    return st.builds(
        lambda key, members, lost: step_request(batch, key, members, lost),
        st.integers(0, batch.steps),
        member_sets(batch),
        lost_pairs(batch),
    )


def lost_pairs(batch: BatchParams) -> SearchStrategy[Pairs]:
    """Draw pairs that a server may list as lost: none, a few, or all across a cut."""
    pairs = tuple(combinations(batch.roster, 2))
    few = st.sets(st.sampled_from(pairs), max_size=4).map(lambda some: tuple(sorted(some)))
    cuts = st.sets(st.sampled_from(batch.roster)).map(
        lambda side: tuple(pair for pair in pairs if len(side.intersection(pair)) == 1)
    )
    return st.one_of(st.just(()), few, cuts)


def step_request(
    batch: BatchParams, key: int, members: Iterable[int], lost: Pairs = ()
) -> StepRequest:
    """Return a request with the lost pairs that are within the active set."""
    active = frozenset(members)
    within = (pair for pair in lost if active.issuperset(pair))
    bitmap = messages.encode_set(active, batch.roster)
    return StepRequest(key, bitmap, encode_pairs(within, batch.roster))


_HEADERS = (
    *(b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"),  # arrays and a map
    *(b"\xc4\xff", b"\xc6\xff\xff\xff\xff", b"\xa2\xff\xfe"),  # byte strings, text that is none
    *(b"\xcf" + b"\xff" * 8, b"\xc0", b"\xc1", b"\x80", b"\x91" * 2000),
)


def mutations(valid: bytes, others: Mapping[str, bytes]) -> SearchStrategy[bytes]:
    """Draw damaged messages: a bit flipped, cut, spliced with another one, headers inflated."""
    places = st.integers(0, len(valid))
    headers = st.sampled_from(_HEADERS)
    pieces = st.one_of(st.binary(max_size=5), headers, st.sampled_from(sorted(others.values())))

    def edit(data: bytes, at: int, length: int, piece: bytes) -> bytes:
        return data[:at] + piece + data[at + length :]

    one = st.builds(edit, st.just(valid), places, st.integers(0, 8), pieces)
    two = st.builds(edit, one, places, st.integers(0, 8), pieces)
    flipped = st.integers(0, 8 * len(valid) - 1).map(lambda bit: flip(valid, bit))
    return st.one_of(flipped, one, two, places.map(lambda end: valid[:end]))


def params_of(batch: BatchParams, task: Task) -> AggregationParams:
    """Return the parameters of one aggregation on its own with the roster of a batch."""
    return AggregationParams(
        step=task.step,
        kind=task.kind,
        sections=task.sections,
        broadcast_digest=task.broadcast_digest,
        **batch.agreed(),
    )
