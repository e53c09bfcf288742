"""One aggregation on the k-regular ring with up to a thousand clients, and what it costs.

All clients run one after the other in this process. The server has a process of its own and is
spoken to over a pipe, so that its peak memory is its own: the kernel's high-water mark less what
the process held before the session. Degree and threshold are for 5 % corrupt and 5 % dropping out,
sigma = 40, eta = 30; 5 % fall silent after they shared their keys. The sum is checked.
"""

import json
import math
import multiprocessing
import os
import statistics
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.masking.one_sum import Clock
from benchmarks.shared.gates import Comparison, progress
from protocols.client.session import ClientSession
from protocols.graph_parameters import RingParameters, ring_parameters
from protocols.params import AggregationParams, Section, default_threshold
from protocols.server.session import ServerSession

CORRUPT = DROPOUTS = 0.05
SIGMA, ETA = 40, 30
MAXIMUM = 2**16 - 1  # of an input; b = 26 at a thousand clients

# At most so many bytes of server memory for one more entry of the vector, and for one more edge.
BYTES_AN_ENTRY = 64
BYTES_AN_EDGE = 1024

MIB = 1 << 20


@dataclass(frozen=True)
class RingCase:
    """How many clients and how long their vectors."""

    clients: int
    length: int

    def __str__(self) -> str:
        k, t = self.ring.k, self.ring.t
        return f"n = {self.clients}, d = {self.length:,}, {len(self.silent)} drop, k = {k}, t = {t}"

    @property
    def ids(self) -> tuple[int, ...]:
        """Client ids."""
        return tuple(range(1001, 1001 + self.clients))

    @property
    def silent(self) -> frozenset[int]:
        """Clients that share keys and send no masked input; the ring puts them anywhere."""
        return frozenset(self.ids[: int(DROPOUTS * self.clients)])

    @property
    def ring(self) -> RingParameters:
        """Degree, threshold and the chances that they fail."""
        return ring_parameters(
            self.clients, corrupt=CORRUPT, dropouts=DROPOUTS, sigma=SIGMA, eta=ETA
        )

    @property
    def edges(self) -> int:
        """Both ends counted: n k."""
        return self.clients * self.ring.k

    @property
    def params(self) -> AggregationParams:
        """What all parties agree on."""
        return AggregationParams(
            session=bytes(32),
            step=0,
            kind="benchmark",
            roster=self.ids,
            threshold=default_threshold(self.clients),
            sections=(Section(name="x", length=self.length, maximum=MAXIMUM, clip=1.0),),
            broadcast_digest=bytes(32),
            ring=self.ring.ring,
        )


@dataclass(frozen=True)
class RingFigures:
    """What one aggregation cost.

    Times in milliseconds, bytes per client: means over the clients that stayed. Memory in bytes.
    """

    client_cpu: float
    client_wall: float
    server_cpu: float
    server_wall: float
    upload: float
    download: float
    memory: int


FULL = (
    *(RingCase(n, 100_000) for n in (50, 100, 200, 500, 1000)),
    *(RingCase(200, d) for d in (10_000, 30_000, 300_000, 1_000_000)),
)
QUICK = (RingCase(50, 10_000), RingCase(200, 10_000), RingCase(50, 100_000))


# The server's process ----------------------------------------------------------------------------


def _serve(pipe: Connection, case: RingCase) -> None:
    """Answer one request after the other; what is not a session's work is not in the clock."""
    params, clock = case.params, Clock()
    before = _memory("VmRSS")
    server = ServerSession(params.batch)
    replies = dict.fromkeys(case.ids, b"")
    steps: dict[bytes, Callable[[], Any]] = {
        b"E": server.end_round,
        b"B": lambda: server.begin_step(params.task),
    }
    while True:
        request = pipe.recv_bytes()
        kind, client, body = request[:1], int.from_bytes(request[1:9], "big"), request[9:]
        with clock.running():
            if kind == b"U":
                server.receive(client, body)
                continue
            if kind == b"D":
                answer = replies[client]
            elif kind in steps:
                replies = steps[kind]()
                answer = struct.pack(f">{len(replies)}Q", *replies)
            else:
                break
        pipe.send_bytes(answer)
    pipe.send_bytes(server.result.totals["x"].astype("<u4").tobytes())
    memory = _memory("VmHWM") - before
    pipe.send_bytes(json.dumps([clock.cpu, clock.wall, memory]).encode())


def _memory(name: str) -> int:
    """Bytes, from the kernel; VmHWM is the most that this process ever held, from its exec on."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no memory figures: this benchmark needs Linux")


# The clients' process ----------------------------------------------------------------------------


class _Server:
    """The other end of the pipe."""

    def __init__(self, case: RingCase) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, case))
        self._process.start()
        theirs.close()

    def upload(self, client: int, data: bytes) -> None:
        """Hand over a message."""
        self._pipe.send_bytes(b"U" + client.to_bytes(8, "big") + data)

    def download(self, client: int) -> bytes:
        """Return what the server has for a client."""
        return self._ask(b"D" + client.to_bytes(8, "big"))

    def next_round(self, kind: bytes = b"E") -> tuple[int, ...]:
        """End the round, or begin the step; return who is asked next."""
        data = self._ask(kind)
        return struct.unpack(f">{len(data) // 8}Q", data)

    def finish(self) -> tuple[NDArray[np.uint32], tuple[float, float, int]]:
        """Return the sum, CPU and wall milliseconds, and bytes of memory."""
        total = np.frombuffer(self._ask(b"F"), dtype="<u4")
        cpu, wall, memory = json.loads(self._pipe.recv_bytes())
        self._process.join()
        return total, (cpu, wall, memory)

    def _ask(self, request: bytes) -> bytes:
        self._pipe.send_bytes(request)
        return self._pipe.recv_bytes()


class _Clients:
    """All clients, their clocks and bytes."""

    def __init__(self, case: RingCase) -> None:
        batch = case.params.batch
        self.sessions = {u: ClientSession(batch, u, os.urandom) for u in case.ids}
        self.clocks = {u: Clock() for u in case.ids}
        self.sent = dict.fromkeys(case.ids, 0)
        self.got = dict.fromkeys(case.ids, 0)

    def round(
        self,
        server: _Server,
        waiting: Iterable[int],
        answer: Callable[[ClientSession, int, bytes], bytes | None],
    ) -> None:
        """Let everyone answer what the server has for it."""
        for u in waiting:
            message = server.download(u)
            with self.clocks[u].running():
                reply = answer(self.sessions[u], u, message)
            self.got[u] += len(message)
            self.sent[u] += len(reply or b"")
            if reply is not None:
                server.upload(u, reply)


def run(case: RingCase) -> RingFigures:
    """Run one aggregation; it ends the script if the sum is not exact."""
    progress(f"ring: {case}")
    server, clients = _Server(case), _Clients(case)
    task = case.params.task
    expected = np.zeros(case.length, dtype=np.uint64)

    def masked(client: ClientSession, u: int, request: bytes) -> bytes:
        return client.masked_input(request, task, {"x": inputs[u]})

    clients.round(server, case.ids, lambda c, _, __: c.advertise_keys())
    clients.round(server, server.next_round(), lambda c, _, data: c.draw_graph(data))
    clients.round(server, server.next_round(), lambda c, _, data: c.share_keys(data))
    clients.round(server, server.next_round(), lambda c, _, data: c.open_bundles(data))
    for u in server.next_round(b"B"):
        if u not in case.silent:
            inputs = {u: np.random.default_rng(u).integers(0, MAXIMUM + 1, case.length, np.uint32)}
            expected += inputs[u]
            clients.round(server, [u], masked)
    clients.round(server, server.next_round(), lambda c, _, data: c.unmask(data))
    server.next_round()
    total, (cpu, wall, memory) = server.finish()
    if not np.array_equal(total, expected):
        raise SystemExit(f"{case}: the sum is wrong")
    return _figures(case, clients, cpu, wall, memory)


def _figures(
    case: RingCase, clients: _Clients, cpu: float, wall: float, memory: int
) -> RingFigures:
    stayed = [u for u in case.ids if u not in case.silent]
    clocks = [clients.clocks[u] for u in stayed]
    return RingFigures(
        statistics.mean(clock.cpu for clock in clocks),
        statistics.mean(clock.wall for clock in clocks),
        cpu,
        wall,
        statistics.mean(clients.sent[u] for u in stayed),
        statistics.mean(clients.got[u] for u in stayed),
        memory,
    )


# What the benchmark shows ------------------------------------------------------------------------

Measured = dict[RingCase, RingFigures]


def rows(measured: Measured) -> list[dict[str, Any]]:
    """Return rows for the table of `secure_aggregation.py`."""
    return [
        {
            "case": str(case),
            "who": "ours, k-regular",
            "client CPU ms": figures.client_cpu,
            "client wall ms": figures.client_wall,
            "server CPU ms": figures.server_cpu,
            "server wall ms": figures.server_wall,
            "bytes up": round(figures.upload),
            "bytes down": round(figures.download),
            "server MiB": figures.memory / MIB,
            "largest error": 0.0,
        }
        for case, figures in measured.items()
    ]


def gates(measured: Measured) -> list[Comparison]:
    """Return gates on O(d + n k): bytes for one more entry, and for one more edge."""
    lengths, edges = _along(measured, "clients"), _along(measured, "length")
    entries = lengths[-1].length - lengths[0].length
    more = edges[-1].edges - edges[0].edges
    return [
        _slope_gate("entry", measured, lengths, entries, BYTES_AN_ENTRY),
        _slope_gate("edge (n k)", measured, edges, more, BYTES_AN_EDGE),
    ]


def _slope_gate(
    what: str, measured: Measured, cases: Sequence[RingCase], more: int, bound: int
) -> Comparison:
    low, high = cases[0], cases[-1]
    slope = (measured[high].memory - measured[low].memory) / more
    ends = f"{low.clients} x {low.length:,} to {high.clients} x {high.length:,}"
    label = f"server memory, bytes for one more {what}, {ends}"
    return Comparison.at_most(label, slope, bound).of(slope)


def _along(measured: Measured, fixed: str) -> list[RingCase]:
    """Return the cases of the longest row or column of the grid, smallest first."""
    values = [getattr(case, fixed) for case in measured]
    cases = [case for case in measured if getattr(case, fixed) == statistics.mode(values)]
    return sorted(cases, key=lambda case: (case.clients, case.length))


def notes(measured: Measured) -> dict[str, str]:
    """Return what does not fit the table."""
    largest = max(measured, key=lambda case: case.edges)
    ring, figures = largest.ring, measured[largest]
    plain = 4 * largest.clients * largest.length
    chances = {"opened": ring.log2_exposed, "split": ring.log2_split, "stuck": ring.log2_stuck}
    return {
        f"ring of {largest.clients}": f"{CORRUPT:.0%} corrupt, {DROPOUTS:.0%} dropping out; "
        + ", ".join(f"{what} {_chance(log2)}" for what, log2 in chances.items()),
        f"server memory, {largest.clients} x {largest.length:,}": f"{figures.memory / MIB:.1f} MiB"
        f"; all masked vectors at once would be {plain / MIB:.0f} MiB",
    }


def _chance(log2: float) -> str:
    return "never" if math.isinf(log2) else f"<= 2^{log2:.1f}"


def plot(measured: Measured, path: Path) -> None:
    """Draw cost against n and against d."""
    import matplotlib as mpl  # noqa: PLC0415 - only --record draws

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for fixed, varied, (times, memory) in (
        ("length", "clients", axes[:, 0]),
        ("clients", "length", axes[:, 1]),
    ):
        cases = _along(measured, fixed)
        xs = [getattr(case, varied) for case in cases]
        for name, values in _lines(cases, measured):
            times.plot(xs, values, marker="o", label=name)
        memory.plot(xs, [measured[case].memory / MIB for case in cases], marker="o", color="C2")
        times.set(title=f"{fixed} = {getattr(cases[0], fixed):,}", ylabel="CPU ms", xlabel=varied)
        memory.set(ylabel="server memory, MiB", xlabel=varied)
        for axis in (times, memory):
            axis.set(xscale="log", yscale="log")
            axis.grid(visible=True, alpha=0.3)
        times.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _lines(cases: Sequence[RingCase], measured: Measured) -> list[tuple[str, list[float]]]:
    return [
        ("one client", [measured[case].client_cpu for case in cases]),
        ("server", [measured[case].server_cpu for case in cases]),
    ]
