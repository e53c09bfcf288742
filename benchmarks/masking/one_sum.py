"""One weighted secure aggregation, timed by party: the work on which implementations compare.

Client u holds a float32 vector x_u and a weight w_u of 50 to 499. The result is the weighted
mean. What is timed: everything after local training and before the decoded mean.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from protocols.client.session import ClientSession
from protocols.params import AggregationParams, Section, default_threshold
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey
from protocols.quantization import Quantizer
from protocols.server.session import ServerSession

MAX_WEIGHT = 500
MAXIMUM = 1 << 22  # 2^22 + 1 levels, as Flower has


@dataclass(frozen=True)
class Case:
    """How many clients, how long their vectors, how many fall silent after sharing keys."""

    clients: int
    length: int
    dropouts: int = 0

    def __str__(self) -> str:
        drop = f", {self.dropouts} drop" if self.dropouts else ""
        return f"n = {self.clients}, d = {self.length:,}{drop}"

    @property
    def ids(self) -> tuple[int, ...]:
        """Client ids."""
        return tuple(range(1001, 1001 + self.clients))

    @property
    def silent(self) -> frozenset[int]:
        """Clients that share keys and send no masked input."""
        return frozenset(self.ids[: self.dropouts])

    def data(self) -> tuple[dict[int, NDArray[np.float32]], dict[int, int]]:
        """Return everyone's vector and weight."""
        rng = np.random.default_rng(7)
        vectors = {u: rng.uniform(-1, 1, self.length).astype(np.float32) for u in self.ids}
        return vectors, {u: int(rng.integers(50, MAX_WEIGHT)) for u in self.ids}

    def error(self, mean: NDArray[np.floating]) -> float:
        """Return the largest distance from the exact weighted mean of those who stayed."""
        vectors, weights = self.data()
        alive = [u for u in self.ids if u not in self.silent]
        total = sum(weights[u] * vectors[u].astype(np.float64) for u in alive)
        return float(np.abs(mean - total / sum(weights[u] for u in alive)).max())


@dataclass(frozen=True)
class Figures:
    """What one aggregation cost.

    Times in milliseconds, bytes without the broadcast; client figures are means over clients.
    """

    client_cpu: float
    client_wall: float
    server_cpu: float
    server_wall: float
    upload: float
    download: float
    error: float

    @classmethod
    def median(cls, runs: list[Self]) -> Self:
        """Return the median of every figure."""
        return cls(*(statistics.median(getattr(r, name) for r in runs) for name in vars(runs[0])))


@dataclass
class Clock:
    """Process CPU time and wall time spent inside `running`, in milliseconds."""

    cpu: float = 0.0
    wall: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.cpu += (time.process_time() - cpu) * 1000
            self.wall += (time.perf_counter() - wall) * 1000


@dataclass
class Meter:
    """The clocks of all parties and the bytes that clients sent and got."""

    clients: dict[int, Clock]
    server: Clock = field(default_factory=Clock)
    sent: dict[int, int] = field(default_factory=dict)
    got: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case) -> Self:
        """Return a meter at zero."""
        clocks, zeros = {u: Clock() for u in case.ids}, dict.fromkeys(case.ids, 0)
        return cls(clocks, sent=zeros.copy(), got=zeros.copy())

    def figures(self, case: Case, mean: NDArray[np.floating]) -> Figures:
        """Return the figures; clients that fell silent do not count in the means."""
        stayed = [u for u in case.ids if u not in case.silent]
        return Figures(
            statistics.mean(self.clients[u].cpu for u in stayed),
            statistics.mean(self.clients[u].wall for u in stayed),
            self.server.cpu,
            self.server.wall,
            statistics.mean(self.sent[u] for u in stayed),
            statistics.mean(self.got[u] for u in stayed),
            case.error(mean),
        )


def ours(case: Case) -> Figures:
    """Run our sessions over real bytes, semi-honest, complete graph."""
    return _run(case, {})


def ours_malicious(case: Case) -> Figures:
    """Run them in the malicious model: signatures, a policy, and the consistency round."""
    return _run(case, {u: SigningKey.from_private_bytes(os.urandom(32)) for u in case.ids})


def _run(case: Case, keys: Mapping[int, SigningKey]) -> Figures:
    """Run one aggregation; with signing keys in the malicious model."""
    params, quantizer = _params(case, keys), Quantizer(MAXIMUM, 1.0)
    vectors, weights = case.data()
    server = ServerSession(params.batch)
    policy = Policy() if keys else None
    clients = {
        u: ClientSession(params.batch, u, os.urandom, identity=keys.get(u), policy=policy)
        for u in case.ids
    }
    meter = Meter.of(case)

    def masked(u: int, request: bytes) -> bytes:
        scaled = vectors[u] * np.float32(weights[u] / MAX_WEIGHT)
        codes = quantizer.encode(scaled, seed=os.urandom(32), step=0, section="x")
        inputs = {"x": codes, "w": np.array([weights[u]], dtype=np.uint32)}
        return clients[u].masked_input(request, params.task, inputs)

    def run_round(waiting: dict[int, bytes], answer: Callable[[int, bytes], bytes | None]) -> None:
        for u, message in waiting.items():
            meter.got[u] += len(message)
            with meter.clients[u].running():
                sent = answer(u, message)
            if sent is not None:
                meter.sent[u] += len(sent)
                with meter.server.running():
                    server.receive(u, sent)

    def end_round() -> dict[int, bytes]:
        with meter.server.running():
            return dict(server.end_round())

    run_round(dict.fromkeys(case.ids, b""), lambda u, _: clients[u].advertise_keys())
    run_round(end_round(), lambda u, message: clients[u].share_keys(message))
    run_round(end_round(), lambda u, message: clients[u].open_bundles(message))
    with meter.server.running():
        requests = server.begin_step(params.task)
    run_round({u: m for u, m in requests.items() if u not in case.silent}, masked)
    if keys:
        run_round(end_round(), lambda u, message: clients[u].confirm(message))
    run_round(end_round(), lambda u, message: clients[u].unmask(message))
    end_round()
    with meter.server.running():
        mean = _weighted_mean(server, quantizer)
    return meter.figures(case, mean)


def _params(case: Case, keys: Mapping[int, SigningKey]) -> AggregationParams:
    return AggregationParams(
        session=bytes(32),
        step=0,
        kind="benchmark",
        roster=case.ids,
        threshold=default_threshold(case.clients),
        sections=(
            Section(name="x", length=case.length, maximum=MAXIMUM, clip=1.0),
            Section(name="w", length=1, maximum=MAX_WEIGHT, clip=1.0),
        ),
        broadcast_digest=bytes(32),
        threat_model="malicious" if keys else "semi-honest",
        identities=tuple(keys[u].public for u in case.ids) if keys else (),
    )


def _weighted_mean(server: ServerSession, quantizer: Quantizer) -> NDArray[np.float64]:
    totals, survivors = server.result.totals, server.result.survivors
    total = quantizer.decode_sum(totals["x"], len(survivors))
    return total * (MAX_WEIGHT / float(totals["w"][0]))
