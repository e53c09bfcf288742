"""What one client sends and receives over the size of its plain input.

Counted as in Bonawitz et al. 2017, whose headline is 1.73 at 2^10 clients with 2^20 values and 1.98
at 2^14 clients with 2^24 values of 16 bits: both directions, without the broadcast, nobody drops
out. Keys are made for M steps at once, and every step pays its part of the exchange.

Every message that a client of the complete graph sends or gets is built with as many entries as
there are clients, encoded by the protocol's encoder, and accepted by its decoder. What is in the
entries does not change their size, so keys and shares are zeros. A test compares the counts with
those of whole runs. Reports are not counted: nobody sends any if nobody cheats.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.shared.gates import Comparison, progress
from protocols import messages
from protocols.messages import (
    Advertisement,
    BundleDelivery,
    Consistency,
    ConsistencyProof,
    KeyDirectory,
    MaskedInput,
    Message,
    ShareBundles,
    Signed,
    StepRequest,
    SurvivorSet,
    UnmaskShares,
)
from protocols.params import DIGEST_SIZE, BatchParams, Section, Task, default_threshold
from protocols.phases import Phase, ThreatModel
from protocols.primitives.keys import KEY_SIZE, SIGNATURE_SIZE
from protocols.primitives.packing import pack
from protocols.primitives.shamir import SIZE as SHARE_SIZE
from protocols.rounds import Direction

BITS = 16  # of a plain value
BATCH = 8  # M of the gates
MAX_STEPS = 128

Counts = dict[tuple[Phase, Direction], int]


@dataclass(frozen=True)
class Batch:
    """M steps of one client, with keys that were made together.

    Attributes:
        clients: all of them, on the complete graph.
        length: of the one section; values have 16 bits.
        steps: M, up to 128: so far every key step takes one byte, and all steps cost the same.
        malicious: whether messages are signed and survivor sets compared.
    """

    clients: int
    length: int
    steps: int = BATCH
    malicious: bool = False

    def __post_init__(self) -> None:
        if self.steps > MAX_STEPS:
            raise ValueError(f"at most {MAX_STEPS} steps")

    def __str__(self) -> str:
        model = "malicious, " if self.malicious else ""
        numbers = f"n = {self.clients:,}, d = {self.length:,}, {BITS} bits, M = {self.steps}"
        return f"{numbers}, {model}complete graph"

    @property
    def plain(self) -> int:
        """Bytes of one input without any protocol."""
        return self.length * BITS // 8

    @property
    def params(self) -> BatchParams:
        """What all parties agree on."""
        roster = tuple(range(self.clients))
        model: ThreatModel = "malicious" if self.malicious else "semi-honest"
        return BatchParams(
            session=bytes(32),
            batch=0,
            steps=self.steps,
            roster=roster,
            threshold=default_threshold(self.clients),
            threat_model=model,
            identities=tuple(u.to_bytes(32, "big") for u in roster) if self.malicious else (),
        )

    @property
    def task(self) -> Task:
        """What one step sums."""
        section = Section(name="x", length=self.length, maximum=2**BITS - 1, clip=1.0)
        return Task(step=0, kind="benchmark", sections=(section,), broadcast_digest=bytes(32))

    def counts(self) -> Counts:
        """Return the bytes of one client in the whole batch, by round and direction."""
        offline, step = self._sizes(self._offline()), self._sizes(self._step())
        return offline | {where: self.steps * size for where, size in step.items()}

    def expansion(self) -> float:
        """Return bytes both ways over plain bytes, of the whole batch."""
        return sum(self.counts().values()) / (self.steps * self.plain)

    def _offline(self) -> Iterator[tuple[Phase, Direction, Message]]:
        """Yield rounds 0 and 1."""
        peers = self.clients - 1
        key, digest = bytes(KEY_SIZE), bytes(DIGEST_SIZE)
        sent = Advertisement(key, (key,) * self.steps, digest)
        directory = KeyDirectory(self._everybody, (self._upload(sent),) * self.clients)
        bundles = (bytes(messages.bundle_size(self.params)),) * peers
        yield Phase.ADVERTISE_KEYS, "up", sent
        yield Phase.ADVERTISE_KEYS, "down", directory
        yield Phase.SHARE_KEYS, "up", ShareBundles((digest,) * (2 * self.steps), bundles)
        yield Phase.SHARE_KEYS, "down", BundleDelivery(self._everybody, bundles)

    def _step(self) -> Iterator[tuple[Phase, Direction, Message]]:
        """Yield rounds 2 and 3 of the last step, and the consistency round between them."""
        key, everybody = self.steps - 1, self._everybody
        (field,) = self.task.fields(self.clients)
        vector = pack(np.zeros(self.length, dtype=np.uint32), field.bits)
        yield Phase.MASKED_INPUT, "down", StepRequest(key, everybody)
        yield Phase.MASKED_INPUT, "up", MaskedInput(key, (vector,))
        # What ends a round stands under that round, as in the driver's counts.
        yield Phase.MASKED_INPUT, "down", SurvivorSet(everybody)
        if self.malicious:
            signatures = (bytes(SIGNATURE_SIZE),) * self.clients
            yield Phase.CONSISTENCY, "up", Consistency(key)
            yield Phase.CONSISTENCY, "down", ConsistencyProof(everybody, signatures)
        yield Phase.UNMASKING, "up", UnmaskShares(key, (bytes(SHARE_SIZE),) * self.clients, ())

    @property
    def _everybody(self) -> bytes:
        roster = self.params.roster
        return messages.encode_set(roster, roster)

    def _upload(self, message: Message) -> bytes:
        """Encode what a client sends."""
        body = messages.encode(message)
        if not self.malicious:
            return body
        return messages.encode(Signed(body, bytes(SIGNATURE_SIZE)))

    def _sizes(self, sent: Iterator[tuple[Phase, Direction, Message]]) -> Counts:
        counts: Counts = {}
        batch, task = self.params, self.task
        for phase, direction, message in sent:
            body = messages.encode(message)
            messages.decode(body, type(message), batch, task)
            data = self._upload(message) if direction == "up" else body
            counts[phase, direction] = counts.get((phase, direction), 0) + len(data)
        return counts


# What the benchmark shows ------------------------------------------------------------------------

GATES = ((Batch(2**10, 2**20), 1.73), (Batch(2**14, 2**24), 1.98))
# Beside them: what the size of a batch and the malicious model change.
OTHERS = (
    *(Batch(2**10, 2**20, steps) for steps in (1, 4, 32)),
    Batch(2**10, 2**20, malicious=True),
    Batch(2**14, 2**24, malicious=True),
)


def gates() -> list[Comparison]:
    """Return the gates: Bonawitz's headline at both sizes."""
    found = []
    for case, headline in GATES:
        progress(f"expansion: {case}")
        total = sum(case.counts().values()) / case.steps
        label = f"{case}: bytes a step both ways, over plain input"
        gate = Comparison.below(label, total / case.plain, headline)
        found.append(gate.of(total, case.plain, "plain input, bytes"))
    return found


def notes() -> dict[str, str]:
    """Return where the bytes of a step are, and the expansion of other batches."""
    parts = {f"expansion, {case}": _parts(case) for case, _ in GATES}
    return parts | {f"expansion, {case}": f"{case.expansion():.4f}" for case in OTHERS}


def _parts(case: Batch) -> str:
    counts = {where: size / case.steps for where, size in case.counts().items()}
    sides: tuple[Direction, Direction] = ("up", "down")
    up, down = (sum(size for (_, way), size in counts.items() if way == side) for side in sides)
    (field,) = case.task.fields(case.clients)
    vector = case.length * field.bits / 8
    peer = (up + down - vector) / (case.clients - 1)
    return (
        f"{up:,.0f} bytes up, {down:,.0f} down a step; masked vector {vector:,.0f} ({field.bits} "
        f"bits a value); {peer:.1f} bytes a peer"
    )
