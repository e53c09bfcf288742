"""Properties of masks: uniform to all who lack one secret, and unrelated across steps (D23)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from numpy.typing import NDArray

from protocols import context, masking, messages
from protocols.audit import statistics
from protocols.audit import strategies as some
from protocols.audit.checks import Checks, Outcome
from protocols.audit.lying import LyingServer
from protocols.audit.subject import Subject
from protocols.client.states import OwnSeeds, Prepared
from protocols.messages import MaskedInput, StepRequest
from protocols.params import BatchParams, Task
from protocols.primitives.keys import KeyPair
from protocols.primitives.packing import unpack

# N random bits have complexity N/2, those of a Mersenne Twister at most 19,937. N must be more than
# twice that, or the generator would pass.
LENGTH = 45_000
CLIENTS = 4  # t = 3: two colluders, two honest clients
MAXIMUM = 3  # sums up to 12: GF(13), whose top bit is set in 5 of 13 elements
PAIRS = 2_000

Values = NDArray[np.int64]


def uniform_masks(examples: int, subject: Subject) -> Outcome:
    """A masked input is uniform to the server and t - 1 colluders, whatever the input was.

    The property takes off all masks that the colluders know, and tests what is left: chi-square on
    GF(13), every bit plane against its exact probability, and the linear complexity of the lowest
    plane, which must be near N/2. The input is the smallest or the largest one. The same tests must
    reject masks of the Mersenne Twister. Source: D23, SPEC 4; faults w1, p1, f3, l2.
    """
    checks = Checks()
    _reject_mersenne_twister(checks)

    def check(data: DataObject) -> None:
        run = _Run(subject, data.draw(some.seeds), steps=1)
        value = data.draw(st.sampled_from([0, MAXIMUM]))
        victim, *others = run.batch.roster
        sent = run.masked(victim, 0, np.full(LENGTH, value, dtype=np.uint32))
        colluders = others[: run.batch.threshold - 1]
        left = sent - run.pair_masks(victim, 0, colluders, seeds_of=0)
        for what, values in (("masked input", sent), ("less the colluders' masks", left)):
            _check_uniform(checks, what, values % run.p, run.p)

    return Outcome(some.explore(_few(examples), check), checks.made)


def unlinkable_steps(examples: int, subject: Subject) -> Outcome:
    """With every secret of step 0 known, the masked input of step 1 is uniform and unrelated to it.

    Both steps have the same input. Tested are step 1 less all masks that step 0's secrets give in
    either context, the difference of the two steps, and their joint distribution on GF(13)².
    Source: SPEC 3.8, D11; faults p1, p2, f2 (seeds equal or related across rounds).
    """
    checks = Checks()

    def check(data: DataObject) -> None:
        run = _Run(subject, data.draw(some.seeds), steps=2)
        victim = run.batch.roster[0]
        x = np.full(LENGTH, data.draw(st.integers(0, MAXIMUM)), dtype=np.uint32)
        first, second = run.masked(victim, 0, x), run.masked(victim, 1, x)
        opened = run.all_masks(victim, 0, seeds_of=0)
        right = np.array_equal((first - opened) % run.p, x)
        checks.that(right, "the tester's algebra does not open step 0")
        reused = run.all_masks(victim, 1, seeds_of=0)
        for what, values in (
            ("step 1 less the masks of step 0", second - opened),
            ("step 1 less masks from step 0's seeds", second - reused),
            ("difference of the steps", second - first),
        ):
            _check_uniform(checks, what, values % run.p, run.p)
        joint = statistics.chi_square(first * run.p + second, run.p**2)
        checks.that(joint > statistics.ALARM, f"both steps together: p < {joint:.1e}")

    return Outcome(some.explore(_few(examples), check), checks.made)


def mask_keys(examples: int, subject: Subject) -> Outcome:
    """No bit of a pair-mask key is constant over 2,000 pairs; another context gives another key.

    Source: SPEC 3.3; faults w1 (28 of 256 bits vary), p1 (16 bits, the round without effect).
    """
    del subject  # the derivation is this package's, whatever client is audited
    checks = Checks()
    source = some.seeded_entropy(b"mask keys")
    peer = KeyPair.from_private_bytes(source(32))
    keys = [
        masking.pair_mask_key(KeyPair.from_private_bytes(source(32)), 1, 2, peer.public, b"on")
        for _ in range(PAIRS)
    ]
    bits = np.unpackbits(np.frombuffer(b"".join(keys), dtype=np.uint8)).reshape(PAIRS, -1)
    for position, ones in enumerate(bits.sum(axis=0).tolist()):
        checks.that(abs(ones - PAIRS / 2) < PAIRS / 4, f"bit {position} of the keys is not random")
    checks.that(len(set(keys)) == PAIRS, "two pairs share a key")

    def check(data: DataObject) -> None:
        own = KeyPair.from_private_bytes(data.draw(some.seeds) * 4)
        number = st.integers(0, 2**64 - 1)
        client, key, step = data.draw(number), data.draw(number), data.draw(st.integers(0, 2**32))
        batch, task = some.make_batch(4, "semi-honest"), some.make_task(some.section("x", 3, 2))
        tasks = [
            task,
            some.make_task(some.section("x", 3, 2), step=step + 1),
            some.make_task(some.section("x", 3, 2), broadcast=1),
            some.make_task(some.section("x", 3, 2), kind="other"),
            some.make_task(some.section("y", 3, 2)),
            some.make_task(some.section("x", 4, 2)),
            some.make_task(some.section("x", 3, 3)),
            some.make_task(some.section("x", 3, 2, clip=2.0)),
        ]
        online = {
            context.online(b"off1", k, t, batch.n, b"\7") for t in tasks for k in (key, key ^ 1)
        }
        online |= {context.online(b"off1", key, task, batch.n, b"\x0f")}
        derived = {
            masking.pair_mask_key(own, u, v, peer.public, on)
            for u, v in ((client, client ^ 1), (client, client ^ 2))
            for on in online
        }
        derived |= {masking.self_mask_key(bytes(32), client, on) for on in online}
        checks.that(len(derived) == 3 * (2 * len(tasks) + 1), "two contexts share a mask key")

    return Outcome(some.explore(examples, check), checks.made)


def _few(examples: int) -> int:
    """Return the number of examples; each one expands 45,000 elements several times."""
    return max(examples // 10, 2)


def _check_uniform(checks: Checks, what: str, values: Values, p: int) -> None:
    for test, probability in statistics.uniform(values, p).items():
        checks.that(probability > statistics.ALARM, f"{what}, {test}: p < {probability:.1e}")


def _reject_mersenne_twister(checks: Checks) -> None:
    """Check that the tests reject the masks of fault w1; this is the control."""
    masks = (np.random.MT19937(key).random_raw(LENGTH) for key in (1, 2, 3))
    total = np.asarray(sum(masks), dtype=np.uint64) & np.uint64(2**32 - 1)
    alarm = statistics.complexity_alarm((total & np.uint64(1)).astype(np.int64))
    checks.that(alarm < statistics.ALARM, "the test does not tell a Mersenne Twister from random")
    shorter = statistics.linear_complexity((total & np.uint64(1)).astype(np.int64))
    checks.that(shorter == 19_937, f"a Mersenne Twister has complexity {shorter}")  # noqa: PLR2004


class _Run:
    """Clients after the offline exchange, and all of their seeds."""

    def __init__(self, subject: Subject, seed: bytes, steps: int) -> None:
        self.batch: BatchParams = some.make_batch(CLIENTS, "semi-honest", steps=steps)
        entropy = some.seeded_entropy(seed)
        self.server = LyingServer(some.parties(self.batch), entropy, client=subject.client)
        states = {u: client.state for u, client in self.server.clients.items()}
        ready = {u: state for u, state in states.items() if isinstance(state, Prepared)}
        self._off1 = next(iter(ready.values())).off1
        self._seeds: Mapping[int, list[OwnSeeds]] = {
            u: [state.unused[key].seeds for key in range(steps)] for u, state in ready.items()
        }
        self.p = self._task(0).fields(CLIENTS)[0].p

    def masked(self, client: int, key: int, x: NDArray[np.uint32]) -> Values:
        """Return the masked input of a client in a step, as field elements."""
        task = self._task(key)
        data = self.server.request(client, self._request(key), task, {"x": x}) or b""
        sent = messages.decode(data, MaskedInput, self.batch, task)
        (field,) = task.fields(CLIENTS)
        return unpack(sent.sections[0], field.bits, LENGTH).astype(np.int64)

    def pair_masks(self, client: int, key: int, peers: list[int], seeds_of: int) -> Values:
        """Return the masks with some peers in step `key`, from the seeds of step `seeds_of`."""
        total, on, off0 = self._zeros(key), self._on(key), context.offline(self.batch)
        pairs = {
            u: masking.mask_key_pair(self._seeds[u][seeds_of].mask_key, u, seeds_of, off0)
            for u in self.batch.roster
        }
        for peer in peers:
            mask_key = masking.pair_mask_key(pairs[peer], peer, client, pairs[client].public, on)
            total.add(mask_key, masking.pair_sign(client, peer))
        return total.reduced()[0].astype(np.int64)

    def all_masks(self, client: int, key: int, seeds_of: int) -> Values:
        """Return all pair masks plus the self mask in step `key`, from seeds of step `seeds_of`."""
        total = self._zeros(key)
        seed = self._seeds[client][seeds_of].self_mask
        total.add(masking.self_mask_key(seed, client, self._on(key)), 1)
        peers = [u for u in self.batch.roster if u != client]
        pairs = self.pair_masks(client, key, peers, seeds_of)
        return total.reduced()[0].astype(np.int64) + pairs

    def _zeros(self, key: int) -> masking.MaskedSum:
        zeros = [np.zeros(LENGTH, dtype=np.uint32)]
        return masking.MaskedSum(self._task(key), CLIENTS, zeros)

    def _task(self, key: int) -> Task:
        return some.make_task(some.section("x", LENGTH, MAXIMUM), step=key)

    def _request(self, key: int) -> StepRequest:
        return StepRequest(key, messages.encode_set(self.batch.roster, self.batch.roster))

    def _on(self, key: int) -> bytes:
        request = self._request(key)
        return context.online(self._off1, key, self._task(key), CLIENTS, request.active)
