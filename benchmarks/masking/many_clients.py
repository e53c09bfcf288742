"""What many clients cost each other on the graph that they choose (SPEC 8.8), malicious model.

    python -m benchmarks.masking.many_clients        about 10 minutes
    ... --quick         100 and 200 clients
    ... --json          each gate with its figure
    ... --record        also rewrites the recorded figures

One client is run for real through a whole batch of eight steps: it is sent what the others would
send, which this script makes up with their keys. Counted are all phases, per step, without the
masked vector and the broadcast. The server is run for real too, in this process, over uploads that
are made up one by one and that it checks like others; its memory is the most that the process held
beyond what it held before. Its last round, which only computes, is left out for ten thousand.
Degree and threshold are for 5 % corrupt and 5 % silent, sigma = 40, eta = 30.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.shared.gates import Gate, Report, environment, progress
from benchmarks.shared.script import finish, parser
from protocols import context, messages, signing
from protocols.client.session import ClientSession
from protocols.graph_parameters import chosen_parameters
from protocols.messages import (
    ChosenAdvertisement,
    Consistency,
    MaskedInput,
    ShareBundles,
    UnmaskShares,
    encode_set,
)
from protocols.params import BatchParams, Section, Task, default_threshold
from protocols.phases import Phase
from protocols.policy import Policy
from protocols.primitives import packing, shamir
from protocols.primitives.keys import KeyPair, SigningKey, frame, hkdf, seal, u64
from protocols.seeds import Kind, SeedSlot, commit_all
from protocols.server.session import ServerSession

T = TypeVar("T")
ME, MAXIMUM, MIB = 0, 15, 2**20
# The aims of the issue, for a thousand clients.
MOST_SECONDS, MOST_BYTES = 0.3, 60_000


class Crowd:
    """The clients of a batch: their signing keys, and what they would send.

    Args:
        n: clients.
        steps: M.
        length: of the vector.
    """

    def __init__(self, n: int, steps: int, length: int) -> None:
        found = chosen_parameters(n, steps=steps)
        self.k, self.t, self.corrupt = found.k, found.t, found.corrupt
        self.keys = [SigningKey.from_private_bytes(os.urandom(32)) for _ in range(n)]
        self.batch = BatchParams(
            session=bytes(32),
            batch=0,
            steps=steps,
            roster=tuple(range(n)),
            threshold=default_threshold(n),
            threat_model="malicious",
            identities=tuple(key.public for key in self.keys),
            chosen=found.chosen,
        )
        section = Section(name="x", length=length, maximum=MAXIMUM, clip=1.0)
        self.tasks = [
            Task(step=j, kind="x", sections=(section,), broadcast_digest=bytes(32))
            for j in range(steps)
        ]
        self.off0 = context.offline(self.batch)
        self.everybody = encode_set(self.batch.roster, self.batch.roster)
        self.off1 = context.listed(self.off0, self.everybody)
        self.random = np.random.default_rng(0)

    def advert(self, u: int, chosen: list[int], commitment: bytes = bytes(32)) -> bytes:
        """Return a signed advertisement, with fresh keys except for the channel key."""
        public = tuple(fresh().public for _ in range(self.batch.steps))
        listed = encode_set(sorted(chosen), self.batch.roster)
        message = ChosenAdvertisement(fresh(u).public, public, commitment, listed)
        return signing.wrap(self.keys[u], u, self.off0, message)

    def choice(self, u: int, *, called: bool | None = None) -> list[int]:
        """Return whom a client chose; ``called`` says whether `ME` is among them."""
        others = [v for v in self.batch.roster if v != u and (called is None or v != ME)]
        drawn = self.random.choice(others, self.k - (called is True), replace=False).tolist()
        return [*drawn, ME] if called else drawn

    def on(self, j: int) -> bytes:
        """Return the context of a step in which all are active."""
        n = len(self.batch.roster)
        return context.online(self.off1, j, self.tasks[j], n, self.everybody)

    def agreed(self, j: int) -> bytes:
        """Return the context of signatures on the survivor set: all."""
        return context.survivors(self.on(j), self.everybody)


def fresh(u: int | None = None) -> KeyPair:
    """Return a key pair: a client's channel key, else a new one."""
    private = os.urandom(32) if u is None else hashlib.sha256(u64(u)).digest()
    return KeyPair.from_private_bytes(private)


class OneClient:
    """One client for real, and what it costs: CPU seconds, bytes up, bytes down."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd, self.cpu, self.up, self.down = crowd, 0.0, 0, 0
        policy = Policy(min_clients=crowd.batch.threshold, colluders=crowd.corrupt)
        # A real client checks its policy once a session; the bound on the graph is cached.
        policy.check_batch(crowd.batch)
        self.session = self._timed(
            ClientSession, crowd.batch, ME, os.urandom, identity=crowd.keys[ME], policy=policy
        )

    def _timed(self, call: Callable[..., T], *given: object, **named: object) -> T:
        began = time.process_time()
        found = call(*given, **named)
        self.cpu += time.process_time() - began
        return found

    def _ask(
        self, call: Callable[..., bytes | None], message: bytes, *more: object, vector: int = 0
    ) -> None:
        """Call the client with a message, and count both ways; ``vector`` bytes of it are not."""
        self.down += len(message)
        reply = self._timed(call, message, *more)
        self.up += len(reply or b"") - vector

    def run(self) -> None:
        """Run one batch."""
        crowd, steps = self.crowd, self.crowd.batch.steps
        sent = self._timed(self.session.advertise_keys)
        self.up += len(sent)
        adverts, callers = self._adverts(sent)
        listed = encode_set(sorted(adverts), crowd.batch.roster)
        ordered = tuple(adverts[v] for v in sorted(adverts))
        directory = messages.ChosenDirectory(crowd.everybody, listed, ordered)
        self._ask(self.session.share_keys, messages.encode(directory))
        bundles = tuple(self._bundle(v, sent, adverts[v]) for v in callers)
        delivery = messages.BundleDelivery(crowd.everybody, bundles)
        self._ask(self.session.open_bundles, messages.encode(delivery))
        for j in range(steps):
            self._step(j)

    def _adverts(self, sent: bytes) -> tuple[dict[int, bytes], list[int]]:
        """Return the neighbours' advertisements, and who of them chose this client."""
        crowd = self.crowd
        body = messages.decode(sent, messages.Signed, crowd.batch).body
        self.own = messages.decode(body, ChosenAdvertisement, crowd.batch)
        self.mine = messages.decode_set(self.own.chosen, crowd.batch.roster)
        chance = crowd.k / (len(crowd.batch.roster) - 1)
        callers = [v for v in crowd.batch.roster if v != ME and crowd.random.random() < chance]
        near = sorted({*self.mine, *callers})
        return {v: crowd.advert(v, crowd.choice(v, called=v in callers)) for v in near}, callers

    def _bundle(self, v: int, sent: bytes, advert: bytes) -> bytes:
        """Return a bundle of random shares, sealed as its sender would."""
        edge = context.edge(self.crowd.off1, {ME: sent, v: advert})
        secret = fresh(v).agree(self.own.channel_key)
        key = hkdf(secret, "bundle", edge, u64(v), u64(ME))
        shares = (shamir.draw_element(os.urandom) for _ in range(2 * self.crowd.batch.steps))
        bound = frame(b"bundle", self.crowd.off1, u64(v), u64(ME))
        return seal(key, b"".join(shares), bound)

    def _step(self, j: int) -> None:
        crowd, task = self.crowd, self.crowd.tasks[j]
        (section,) = task.sections
        values = crowd.random.integers(0, MAXIMUM + 1, section.length, np.uint32)
        request = messages.encode(messages.StepRequest(j, crowd.everybody, ()))
        (field,) = task.fields(len(crowd.batch.roster))
        vector = -(-section.length * field.bits // 8)
        self._ask(self.session.masked_input, request, task, {"x": values}, vector=vector)
        survivors = messages.encode(messages.SurvivorSet(crowd.everybody))
        self._ask(self.session.confirm, survivors)
        wrapped = (
            signing.wrap(crowd.keys[v], v, crowd.agreed(j), Consistency(j)) for v in self.mine
        )
        signatures = tuple(
            messages.decode(data, messages.Signed, crowd.batch).signature for data in wrapped
        )
        signers = encode_set(self.mine, crowd.batch.roster)
        proof = messages.encode(messages.ConsistencyProof(signers, signatures))
        self._ask(self.session.unmask, proof)


def one_client(n: int, steps: int, length: int) -> dict[str, float]:
    """Run one of n clients through a batch; return what a step costs it."""
    progress(f"one client of {n}, {steps} steps")
    client = OneClient(Crowd(n, steps, length))
    client.run()
    return {
        "clients": n,
        "M": steps,
        "k": client.crowd.k,
        "t": client.crowd.t,
        "client CPU s a step": client.cpu / steps,
        "kB up a step": client.up / steps / 1000,
        "kB down a step": client.down / steps / 1000,
    }


class MadeUp:
    """Uploads of all clients for one step, whose seeds the server can rebuild."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        roster, self.field = crowd.batch.roster, crowd.tasks[0].fields(len(crowd.batch.roster))[0]
        higher = [
            int.from_bytes(shamir.draw_element(os.urandom), "big") for _ in range(crowd.t - 1)
        ]
        # All polynomials are this one plus a seed; the server cannot tell.
        shares = shamir.split(bytes(32), higher, range(1, len(roster) + 1))
        self.common = {u: int.from_bytes(shares[u + 1], "big") for u in roster}
        self.seeds = {u: shamir.draw_element(os.urandom) for u in roster}
        self.holders: dict[int, list[int]] = {u: [] for u in roster}  # whose shares each holds

    def _commitments(self, u: int) -> tuple[bytes, bytes]:
        slot = SeedSlot(self.crowd.off0, u, 0, Kind.SELF_MASK)
        return bytes(32), slot.commit(self.seeds[u])

    def of(self, phase: Phase) -> Iterator[tuple[int, bytes]]:
        """Yield every client's upload of a round."""
        crowd = self.crowd
        bound = {
            Phase.SHARE_KEYS: crowd.off1,
            Phase.MASKED_INPUT: crowd.on(0),
            Phase.CONSISTENCY: crowd.agreed(0),
            Phase.UNMASKING: crowd.agreed(0),
        }
        for u in crowd.batch.roster:
            if phase is Phase.ADVERTISE_KEYS:
                chosen = crowd.choice(u)
                for v in chosen:
                    self.holders[v].append(u)
                yield u, crowd.advert(u, chosen, commit_all(self._commitments(u)))
            else:
                yield u, signing.wrap(crowd.keys[u], u, bound[phase], self._message(phase, u))

    def _message(self, phase: Phase, u: int) -> messages.Message:
        crowd = self.crowd
        if phase is Phase.SHARE_KEYS:
            bundles = tuple(os.urandom(64 * crowd.batch.steps + 16) for _ in range(crowd.k))
            return ShareBundles(self._commitments(u), bundles)
        if phase is Phase.MASKED_INPUT:
            length = crowd.tasks[0].sections[0].length
            values = crowd.random.integers(0, self.field.p, length, np.uint32)
            return MaskedInput(0, (packing.pack(values, self.field.bits),))
        if phase is Phase.CONSISTENCY:
            return Consistency(0)
        numbers = (
            (self.common[u] + int.from_bytes(self.seeds[v], "big")) % shamir.P
            for v in self.holders[u]
        )
        return UnmaskShares(0, tuple(number.to_bytes(32, "big") for number in numbers), ())


def server(n: int, length: int, *, to_the_end: bool) -> dict[str, Any]:
    """Run the server over one step of n clients; return its memory and CPU time."""
    progress(f"the server of {n}")
    crowd = Crowd(n, 1, length)
    made_up, cpu, before = MadeUp(crowd), 0.0, memory("VmRSS")
    clear_peak()
    session = ServerSession(crowd.batch, rejoin=False, barred=set(), entropy=os.urandom)
    for phase in (p for p in Phase if p is not Phase.DRAW_GRAPH):
        if phase is Phase.MASKED_INPUT:
            session.begin_step(crowd.tasks[0])
        for u, data in made_up.of(phase):
            began = time.process_time()
            session.receive(u, data)
            cpu += time.process_time() - began
        if phase is Phase.UNMASKING and not to_the_end:
            break
        began = time.process_time()
        replies = session.end_round()
        for u in replies:
            len(replies[u])  # encoded when it is sent
        cpu += time.process_time() - began
    if to_the_end and session.result.survivors != crowd.batch.roster:
        raise SystemExit("the sum is not over all clients")
    return {
        "clients": n,
        "k": crowd.k,
        "t": crowd.t,
        "server MiB": (memory("VmHWM") - before) / MIB,
        "server CPU s": cpu,
        "to the sum": "yes" if to_the_end else "up to the last answer",
    }


def memory(name: str) -> int:
    """Return bytes that the kernel counts for this process; VmHWM is the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def clear_peak() -> None:
    """Let the kernel count the peak anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main() -> None:
    """Run the cases and print the tables."""
    options = parser(__doc__ or "", "100 and 200 clients").parse_args()
    many, most = (100, 200) if options.quick else (1000, 10_000)
    length = 10_000
    rows = [one_client(many, 8, length), one_client(most, 8, length)]
    served = [
        server(many, length, to_the_end=True),
        server(most, length, to_the_end=options.quick),
    ]
    first = rows[0]
    gates = [
        Gate.at_most(
            f"client CPU s a step, n = {many}", first["client CPU s a step"], MOST_SECONDS
        ),
        *(
            Gate.at_most(
                f"kB {way} a step, n = {many}", first[f"kB {way} a step"], MOST_BYTES / 1e3
            )
            for way in ("up", "down")
        ),
    ]
    told = {
        f"server of {one['clients']}, {one['to the sum']}": f"{one['server MiB']:.0f} MiB at most, "
        f"{one['server CPU s']:.0f} s of CPU; M = 1, d = {length:,}, k = {one['k']}, t = {one['t']}"
        for one in served
    }
    notes = environment("numpy", "cryptography") | told
    finish(Report("one client on the chosen graph", rows, gates, notes), options, "many_clients")


if __name__ == "__main__":
    main()
