"""One secure aggregation, timed by party: the work on which implementations compare.

Client u holds a float32 vector x_u and a weight w_u of 50 to 499. The result is the weighted
mean. What is timed: everything after local training and before the decoded mean. `ring.py` runs
the same rounds on the k-regular ring.
"""

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from protocols.client.session import ClientSession
from protocols.params import AggregationParams, Section, default_threshold
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey
from protocols.quantization import Quantizer
from protocols.server.session import ServerSession

MIB = 1 << 20
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


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one aggregation cost.

    Times in milliseconds, bytes without the broadcast; client figures are means over clients.

    Attributes:
        error: largest distance of the result from the exact one.
        memory: the most that the server held, in bytes; None: not measured.
    """

    client_cpu: float
    client_wall: float
    server_cpu: float
    server_wall: float
    upload: float
    download: float
    error: float
    memory: int | None = None

    @classmethod
    def median(cls, runs: Sequence[Self]) -> Self:
        """Return the median of every figure that was measured."""
        values = {name: [getattr(run, name) for run in runs] for name in vars(runs[0])}
        return cls(**{n: statistics.median(v) for n, v in values.items() if None not in v})

    def row(self, case: object, who: str) -> dict[str, Any]:
        """Return what a table shows."""
        return {
            "case": str(case),
            "who": who,
            "client CPU ms": self.client_cpu,
            "client wall ms": self.client_wall,
            "server CPU ms": self.server_cpu,
            "server wall ms": self.server_wall,
            "bytes up": round(self.upload),
            "bytes down": round(self.download),
            "server MiB": None if self.memory is None else self.memory / MIB,
            "largest error": self.error,
        }


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
    def of(cls, ids: Iterable[int]) -> Self:
        """Return a meter at zero."""
        clocks = {u: Clock() for u in ids}
        return cls(clocks, sent=dict.fromkeys(clocks, 0), got=dict.fromkeys(clocks, 0))

    def figures(self, silent: Collection[int], error: float, memory: int | None = None) -> Figures:
        """Return the figures; clients that fell silent do not count in the means."""
        stayed = [u for u in self.clients if u not in silent]
        return Figures(
            client_cpu=statistics.mean(self.clients[u].cpu for u in stayed),
            client_wall=statistics.mean(self.clients[u].wall for u in stayed),
            server_cpu=self.server.cpu,
            server_wall=self.server.wall,
            upload=statistics.mean(self.sent[u] for u in stayed),
            download=statistics.mean(self.got[u] for u in stayed),
            error=error,
            memory=memory,
        )


class Server:
    """A server's session and the time it takes; what it has for a client waits here."""

    def __init__(self, params: AggregationParams, clock: Clock) -> None:
        self.params, self.clock = params, clock
        self.session = ServerSession(params.batch)
        self._waiting: Mapping[int, bytes] = dict.fromkeys(params.roster, b"")

    def upload(self, client: int, data: bytes) -> None:
        """Take a message."""
        with self.clock.running():
            self.session.receive(client, data)

    def download(self, client: int) -> bytes:
        """Return what waits for a client."""
        return self._waiting[client]

    def next_round(self) -> Sequence[int]:
        """End the round; return who is asked next."""
        with self.clock.running():
            self._waiting = self.session.end_round()
        return list(self._waiting)

    def begin_step(self) -> Sequence[int]:
        """Begin the step; return who is asked."""
        with self.clock.running():
            self._waiting = self.session.begin_step(self.params.task)
        return list(self._waiting)


class Reachable(Protocol):
    """A server in this process, or the other end of a pipe."""

    def upload(self, client: int, data: bytes) -> None:
        """Take a message."""

    def download(self, client: int) -> bytes:
        """Return what waits for a client."""

    def next_round(self) -> Sequence[int]:
        """End the round; return who is asked next."""

    def begin_step(self) -> Sequence[int]:
        """Begin the step; return who is asked."""


Inputs = Mapping[str, NDArray[np.uint32]]


def aggregate(
    params: AggregationParams,
    server: Reachable,
    meter: Meter,
    *,
    silent: Collection[int],
    inputs: Callable[[int], Callable[[], Inputs]],
    keys: Mapping[int, SigningKey],
) -> None:
    """Run one aggregation, one client after the other.

    Args:
        params: what all parties agree on.
        server: which ends with the sum.
        meter: of the clients' time and of all bytes.
        silent: clients that share keys and send no masked input.
        inputs: returns, for a client, what encodes its input; only the encoding is timed.
        keys: signing keys, in the malicious model.
    """
    policy = Policy() if keys else None
    sessions = {
        u: ClientSession(params.batch, u, os.urandom, identity=keys.get(u), policy=policy)
        for u in params.roster
    }

    def each(
        asked: Iterable[int],
        answer: Callable[[ClientSession, int, bytes], bytes | None],
    ) -> None:
        for u in asked:
            message = server.download(u)
            meter.got[u] += len(message)
            with meter.clients[u].running():
                sent = answer(sessions[u], u, message)
            if sent is not None:
                meter.sent[u] += len(sent)
                server.upload(u, sent)

    each(params.roster, lambda client, _, __: client.advertise_keys())
    if params.ring:
        each(server.next_round(), lambda client, _, data: client.draw_graph(data))
    each(server.next_round(), lambda client, _, data: client.share_keys(data))
    each(server.next_round(), lambda client, _, data: client.open_bundles(data))
    for u in server.begin_step():
        if u not in silent:
            encode = inputs(u)
            each([u], lambda c, _, data: c.masked_input(data, params.task, encode()))  # noqa: B023
    if keys:
        each(server.next_round(), lambda client, _, data: client.confirm(data))
    each(server.next_round(), lambda client, _, data: client.unmask(data))
    server.next_round()


def ours(case: Case) -> Figures:
    """Run our sessions over real bytes, semi-honest, complete graph."""
    return _run(case, {})


def ours_malicious(case: Case) -> Figures:
    """Run them in the malicious model: signatures, a policy, and the consistency round."""
    return _run(case, {u: SigningKey.from_private_bytes(os.urandom(32)) for u in case.ids})


def _run(case: Case, keys: Mapping[int, SigningKey]) -> Figures:
    params, quantizer, meter = _params(case, keys), Quantizer(MAXIMUM, 1.0), Meter.of(case.ids)
    vectors, weights = case.data()
    server = Server(params, meter.server)

    def inputs(u: int) -> Callable[[], Inputs]:
        def encode() -> Inputs:
            scaled = vectors[u] * np.float32(weights[u] / MAX_WEIGHT)
            codes = quantizer.encode(scaled, seed=os.urandom(32), step=0, section="x")
            return {"x": codes, "w": np.array([weights[u]], dtype=np.uint32)}

        return encode

    aggregate(params, server, meter, silent=case.silent, inputs=inputs, keys=keys)
    with meter.server.running():
        mean = _weighted_mean(server.session, quantizer)
    return meter.figures(case.silent, case.error(mean))


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
