"""The protocol a second time: plain Python integers, one slow object that plays all parties.

Written from SPEC.md and sharing no code with `protocols/`: sections are cited where they are
implemented, and where both agree, SPEC.md said enough. Only ciphers, curves, hashes and signatures
come from a library. `Reference` yields every message of an honest run with dropouts; `Inspector`
says with which error a party must refuse a message. Not here: the ledger (6.7).
"""

import hashlib
import hmac
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Message = tuple[str, str, int, bytes]  # phase, direction, client, bytes
Item = int | bytes | list["Item"]


class RefusedError(Exception):
    """A rule is broken; ``args[0]`` is the name of the error (SPEC 6.6)."""


def require(holds: bool, error: str = "RemoteProtocolError") -> None:
    if not holds:
        raise RefusedError(error)


# -- 2 parameters ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """SPEC 2.2."""

    name: str
    length: int
    maximum: int
    clip: float


@dataclass(frozen=True)
class Batch:
    """What is known before the keys (SPEC 2.1). ``signing``: Ed25519 keys, malicious only."""

    session: bytes
    batch: int
    steps: int
    roster: tuple[int, ...]
    threshold: int
    signing: dict[int, Ed25519PrivateKey] = field(default_factory=dict)
    ring: tuple[int, int] | None = None  # degree, threshold
    chosen: tuple[int, int] | None = None  # k, threshold

    @property
    def tau(self) -> int:
        sparse = self.ring or self.chosen
        return sparse[1] if sparse else self.threshold

    @property
    def malicious(self) -> bool:
        return bool(self.signing)


@dataclass(frozen=True)
class Step:
    """What is known with the broadcast (SPEC 2.1)."""

    number: int
    kind: str
    sections: tuple[Section, ...]
    broadcast: bytes


def is_prime(p: int) -> bool:
    return p > 1 and all(p % d for d in range(2, int(p**0.5) + 1))


def field_of(width: int) -> int:
    """The largest prime below 2^b."""
    return next(p for p in range(2**width - 1, 1, -1) if is_prime(p))


PRIMES = {width: field_of(width) for width in range(2, 33)}


def width_of(n: int, maximum: int) -> int:
    return next(width for width, p in PRIMES.items() if p > n * maximum)


# -- 3 keys and sharing ------------------------------------------------------------------------

VERSION = b"codream-secure/secagg/1"
SHAMIR = 2**256 - 189
KINDS = (b"mask key", b"self mask")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def frame(*items: bytes) -> bytes:
    return b"".join(len(item).to_bytes(4, "big") + item for item in items)


def d(label: str, *items: bytes) -> bytes:
    return hashlib.sha256(frame(VERSION, label.encode(), *items)).digest()


def hkdf(secret: bytes, label: str, *items: bytes) -> bytes:
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, frame(VERSION, label.encode(), *items) + b"\1", "sha256")


def x25519(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(public)
    )


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def identity_of(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def off0(b: Batch) -> bytes:
    model = b"malicious" if b.malicious else b"semi-honest"
    graph = [b"complete", u64(b.threshold)]
    if b.ring:
        graph = [b"k-regular", u64(b.threshold), u64(b.ring[0]), u64(b.ring[1])]
    if b.chosen:
        graph = [b"chosen", u64(b.threshold), u64(b.chosen[0]), u64(b.chosen[1])]
    members = [u64(u) + (identity_of(b.signing[u]) if b.malicious else b"") for u in b.roster]
    return d("off", b.session, u64(b.batch), u64(b.steps), frame(model, *graph), b"".join(members))


def on(
    b: Batch,
    offline: bytes,
    key_step: int,
    step: Step,
    active: Iterable[int],
    *,
    lost: Iterable[tuple[int, int]] = (),
) -> bytes:
    described = []
    for s in step.sections:
        width = width_of(len(b.roster), s.maximum)
        numbers = [s.length, s.maximum, width, PRIMES[width]]
        described.append(
            frame(s.name.encode(), *(u64(x) for x in numbers), struct.pack(">d", s.clip))
        )
    return d(
        "on",
        offline,
        u64(key_step),
        u64(step.number),
        step.kind.encode(),
        frame(*described),
        bitmap(b.roster, active),
        b"".join(b.roster.index(u).to_bytes(4, "big") for pair in sorted(lost) for u in pair),
        step.broadcast,
    )


def shares_of(seed: int, tau: int, context: tuple[bytes, ...], points: Iterable[int]) -> list[int]:
    """SPEC 3.6; ``context`` is off0, u, j and the kind."""
    secret = seed.to_bytes(32, "big")
    rest = [
        int.from_bytes(hkdf(secret, "coefficient", u64(i), *context)) % SHAMIR
        for i in range(1, tau)
    ]
    return [
        sum(c * pow(x, i, SHAMIR) for i, c in enumerate([seed, *rest])) % SHAMIR for x in points
    ]


def interpolate(shares: dict[int, int]) -> int:
    """The value at 0."""
    total = 0
    for x, share in shares.items():
        weight = share
        for other in shares:
            if other != x:
                weight = weight * other * pow(other - x, -1, SHAMIR) % SHAMIR
        total += weight
    return total % SHAMIR


# -- 4 masks -----------------------------------------------------------------------------------


def expand(key: bytes, p: int, length: int) -> list[int]:
    """SPEC 4.1 and 4.2."""
    width = p.bit_length()
    size = 1 if width <= 8 else 2 if width <= 16 else 4
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    limit = 2 ** (8 * size) // p * p

    def words() -> Iterator[int]:
        while True:
            yield int.from_bytes(stream.update(bytes(size)), "little")

    source = words()
    first = [next(source) for _ in range(length)]
    spare = (word for word in source if word < limit)
    return [(word if word < limit else next(spare)) % p for word in first]


# -- 5 messages --------------------------------------------------------------------------------


def pack(item: Item) -> bytes:
    """MessagePack with the shortest headers."""
    if isinstance(item, int):
        if item < 128:
            return bytes([item])
        size = next(size for size in range(4) if item < 2 ** (8 << size))
        return bytes([0xCC + size]) + item.to_bytes(1 << size, "big")
    if isinstance(item, bytes):
        size = next(size for size in range(3) if len(item) < 2 ** (8 << size))
        return bytes([0xC4 + size]) + len(item).to_bytes(1 << size, "big") + item
    head = bytes([0x90 + len(item)]) if len(item) < 16 else b"\xdc" + len(item).to_bytes(2, "big")
    return head + b"".join(map(pack, item))


def unpack(data: bytes) -> Item:
    """Refuses whatever is not the one encoding (SPEC 5.2)."""

    def take(at: int, size: int) -> tuple[bytes, int]:
        require(at + size <= len(data), "DecodeError")
        return data[at : at + size], at + size

    def parse(at: int) -> tuple[Item, int]:
        head, at = take(at, 1)
        tag = head[0]
        if tag < 128:
            return tag, at
        if 0x90 <= tag <= 0x9F or tag == 0xDC:
            count = tag - 0x90
            if tag == 0xDC:
                raw, at = take(at, 2)
                count = int.from_bytes(raw)
            items: list[Item] = []
            for _ in range(count):
                item, at = parse(at)
                items.append(item)
            return items, at
        require(0xC4 <= tag <= 0xC6 or 0xCC <= tag <= 0xCF, "DecodeError")
        raw, at = take(at, 1 << (tag - (0xC4 if tag <= 0xC6 else 0xCC)))
        if tag >= 0xCC:
            return int.from_bytes(raw), at
        return take(at, int.from_bytes(raw))

    item, end = parse(0)
    require(end == len(data) and pack(item) == data, "DecodeError")
    return item


def bitmap(roster: tuple[int, ...], members: Iterable[int]) -> bytes:
    bits = sum(1 << roster.index(u) for u in members)
    return bits.to_bytes((len(roster) + 7) // 8, "little")


def members_of(roster: tuple[int, ...], data: bytes) -> list[int]:
    bits = int.from_bytes(data, "little")
    require(len(data) == (len(roster) + 7) // 8 and bits < 2 ** len(roster), "DecodeError")
    return [u for i, u in enumerate(roster) if bits >> i & 1]


def pack_vector(values: list[int], width: int) -> bytes:
    """SPEC 5.3."""
    stream = sum(value << (i * width) for i, value in enumerate(values))
    return stream.to_bytes((len(values) * width + 7) // 8, "little")


def unpack_vector(data: bytes, width: int, length: int) -> list[int]:
    stream = int.from_bytes(data, "little")
    require(len(data) == (length * width + 7) // 8, "DecodeError")
    require(stream < 2 ** (length * width), "DecodeError")
    values = [stream >> (i * width) & (2**width - 1) for i in range(length)]
    require(all(value < PRIMES[width] for value in values), "DecodeError")
    return values


# -- 6 rounds ----------------------------------------------------------------------------------


@dataclass
class Secrets:
    """What a client draws (SPEC 3.10), and what it is dealt."""

    channel: bytes
    seeds: list[tuple[bytes, bytes]]
    nonce: bytes  # chosen graph: the seed of the choice
    held: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # dealer: j: two shares


class Reference:
    """All parties of one batch.

    Attributes:
        sent: every message so far.
        active: of the step that runs or ran last.
    """

    def __init__(self, batch: Batch, entropy: Callable[[int], bytes]) -> None:
        self.b = batch
        self.entropy = entropy
        self.sent: list[Message] = []
        self.off0 = off0(batch)
        self.off1 = b""
        self.secrets: dict[int, Secrets] = {}
        self.adverts: dict[int, bytes] = {}
        self.u1: list[int] = []
        self.u2: list[int] = []
        self.active: list[int] = []
        self.lost: set[tuple[int, int]] = set()
        self.survivors: list[int] | None = None
        self.key_step = -1
        self.told: dict[int, list[int]] = {}  # client: U3 of its last step, or A (6.3)

    # SPEC 1.4

    def chosen_by(self, u: int) -> list[int]:
        """Whom u chose, of the roster."""
        assert self.b.chosen
        seed = self.secrets[u].nonce
        others = [v for v in self.b.roster if v != u]
        return sorted(sorted(others, key=lambda v: d("choice", seed, u64(v)))[: self.b.chosen[0]])

    def choosers(self, u: int) -> list[int]:
        return [v for v in self.u1 if v != u and u in self.chosen_by(v)]

    def neighbours(self, u: int) -> list[int]:
        if self.b.chosen:
            near = {*self.chosen_by(u), *self.choosers(u)}
            return [v for v in self.u1 if v in near]
        if not self.b.ring or len(self.u1) <= self.b.ring[0] + 1:
            return [v for v in self.u1 if v != u]
        order = sorted(self.u1, key=lambda v: d("ring", self.off1, u64(v)))
        at, half = order.index(u), self.b.ring[0] // 2
        near = {order[(at + i) % len(order)] for i in range(-half, half + 1)}
        return [v for v in self.u1 if v in near and v != u]

    def near(self, u: int) -> list[int]:
        """Neighbours in a step: without those that u lost (SPEC 6.2)."""
        return [v for v in self.neighbours(u) if (min(u, v), max(u, v)) not in self.lost]

    def holders(self, u: int) -> list[int]:
        near = self.near(u)
        if self.b.chosen:
            return [v for v in near if v in self.chosen_by(u)]
        return near if self.b.ring else sorted([*near, u])

    def holds(self, u: int) -> list[int]:
        """Whose shares u has, in roster order."""
        return [v for v in self.u2 if u in self.holders(v)]

    def point(self, u: int) -> int:
        return self.b.roster.index(u) + 1

    def edge(self, u: int, v: int) -> bytes:
        if not self.b.ring and not self.b.chosen:
            return self.off1
        return d("edge", self.off1, *(frame(u64(w), self.adverts[w]) for w in sorted((u, v))))

    # messages

    def down(self, phase: str, to: Iterable[int], message: Callable[[int], list[Item]]) -> None:
        self.sent += [(phase, "down", u, pack(message(u))) for u in to]

    def up(self, phase: str, u: int, message: list[Item], context: bytes) -> bytes:
        data = pack(message)
        if self.b.malicious:
            signature = self.b.signing[u].sign(d("signed", context, u64(u), data))
            data = pack([0x1B, data, signature])
        self.sent.append((phase, "up", u, data))
        return data

    def bits(self, members: Iterable[int]) -> bytes:
        return bitmap(self.b.roster, members)

    def enough(self, members: list[int], least: int = 0) -> list[int]:
        require(len(members) >= max(self.b.threshold, least), "NotEnoughSurvivors")
        return members

    # SPEC 6.1, 6.9, 6.2

    def exchange_keys(self, drops: dict[int, str], changed: Iterable[tuple[int, int]] = ()) -> None:
        """`changed` lists (sender, recipient) of bundles that were changed on the way."""
        rounds = ["advertise_keys", "draw_graph", "share_keys"]
        late = {u: rounds.index(phase) for u, phase in drops.items() if phase in rounds}
        stays = lambda u, phase: late.get(u, 9) > rounds.index(phase)  # noqa: E731
        first = [u for u in self.b.roster if stays(u, "advertise_keys")]
        for u in first:
            self._advertise(u)
        self.enough(first)
        if self.b.ring:
            self._draw(first, lambda u: stays(u, "draw_graph"))
        elif self.b.chosen:
            self.u1 = first
            self.off1 = d("off1", self.off0, self.bits(first))
            self.down("advertise_keys", first, self._chosen_directory)
        else:
            self.u1 = first
            entries = [frame(u64(u), self.adverts[u]) for u in self.u1]
            self.off1 = d("off1", self.off0, *entries)
            directory: list[Item] = [0x11, self.bits(self.u1), [self.adverts[u] for u in self.u1]]
            self.down("advertise_keys", self.u1, lambda _: directory)
        self.u2 = [u for u in self.u1 if stays(u, "share_keys")]
        bundles = {u: self._share(u) for u in self.u2}
        self.enough(self.u2)
        self.down(
            "share_keys",
            self.u2,
            lambda u: [
                0x13,
                self.bits(self.u2),
                [bundles[v][u] for v in self.u2 if u in bundles[v]],
            ],
        )
        for u in self.u2:
            if unopened := sorted(v for v, to in changed if to == u):
                self.up("share_keys", u, [0x18, self.bits(unopened)], self.off1)
                self.lost |= {(min(u, v), max(u, v)) for v in unopened}

    def _element(self) -> bytes:
        while int.from_bytes(seed := self.entropy(32)) >= SHAMIR:
            pass
        return seed

    def mask_private(self, u: int, j: int) -> bytes:
        return hkdf(self.secrets[u].seeds[j][0], "mask key", u64(u), u64(j), self.off0)

    def commitments(self, u: int) -> list[bytes]:
        return [
            d("commitment", self.off0, u64(u), u64(j), kind, seed)
            for j, pair in enumerate(self.secrets[u].seeds)
            for kind, seed in zip(KINDS, pair, strict=True)
        ]

    def _advertise(self, u: int) -> None:
        channel = self.entropy(32)
        seeds = [(self._element(), self._element()) for _ in range(self.b.steps)]
        nonce = self.entropy(32) if self.b.ring or self.b.chosen else b""
        self.secrets[u] = Secrets(channel, seeds, nonce)
        keys: list[Item] = [public_of(self.mask_private(u, j)) for j in range(self.b.steps)]
        fields: list[Item] = [public_of(channel), keys, d("commitments", *self.commitments(u))]
        message = [0x30, *fields, self.nonce_commitment(u)] if self.b.ring else [0x10, *fields]
        if self.b.chosen:
            message = [0x40, *fields, self.bits(self.chosen_by(u))]
        self.adverts[u] = self.up("advertise_keys", u, message, self.off0)

    def _chosen_directory(self, u: int) -> list[Item]:
        near = self.neighbours(u)
        return [0x41, self.bits(self.u1), self.bits(near), [self.adverts[v] for v in near]]

    def nonce_commitment(self, u: int) -> bytes:
        return d("nonce", self.off0, u64(u), self.secrets[u].nonce)

    def _draw(self, first: list[int], stays: Callable[[int], bool]) -> None:
        committed = {u: self.nonce_commitment(u) for u in first}
        listed: list[Item] = [0x31, self.bits(first), list(committed.values())]
        self.down("advertise_keys", first, lambda _: listed)
        self.u1 = [u for u in first if stays(u)]
        nonces = {u: self.secrets[u].nonce for u in self.u1}
        for u in self.u1:
            self.up("draw_graph", u, [0x32, nonces[u]], self.off0)
        self.enough(self.u1, self.b.tau + 1)
        lists = [frame(*(u64(u) + x for u, x in each.items())) for each in (committed, nonces)]
        self.off1 = d("off1", self.off0, *lists)
        self.down(
            "draw_graph",
            self.u1,
            lambda u: [
                0x33,
                self.bits(self.u1),
                list(nonces.values()),
                [self.adverts[v] for v in self.neighbours(u)],
            ],
        )

    def _share(self, u: int) -> dict[int, bytes]:
        """Deal, seal and send; what the recipients will open is kept for them (SPEC 3.5, 3.6)."""
        holders = self.holders(u)
        points = [self.point(v) for v in holders]
        dealt: dict[int, list[tuple[int, int]]] = {v: [] for v in holders}
        for j, pair in enumerate(self.secrets[u].seeds):
            by_kind = [
                shares_of(
                    int.from_bytes(seed), self.b.tau, (self.off0, u64(u), u64(j), kind), points
                )
                for kind, seed in zip(KINDS, pair, strict=True)
            ]
            for v, a, b in zip(holders, *by_kind, strict=True):
                dealt[v].append((a, b))
        for v in holders:
            self.secrets[v].held[u] = dealt[v]
        bundles = {v: self._bundle(u, v, dealt[v]) for v in holders if v != u}
        message: list[Item] = [0x12, list(self.commitments(u)), list(bundles.values())]
        self.up("share_keys", u, message, self.off1)
        return bundles

    def _bundle(self, u: int, v: int, shares: list[tuple[int, int]]) -> bytes:
        pieces = [share.to_bytes(32, "big") for pair in shares for share in pair]
        plain = b"".join(pieces)
        secret = x25519(self.secrets[u].channel, public_of(self.secrets[v].channel))
        key = hkdf(secret, "bundle", self.edge(u, v), u64(u), u64(v))
        bound = frame(b"bundle", self.off1, u64(u), u64(v))
        return AESGCM(key).encrypt(bytes(12), plain, bound)

    # SPEC 6.3, 6.8, 6.4

    def choose_active(self) -> list[int]:
        active = list(self.u2)
        if self.b.malicious and self.active:
            last = self.active if self.survivors is None else self.survivors
            active = [u for u in active if u in last]
        if self.b.ring or self.b.chosen or self.lost:
            while short := [u for u in active if self.held_by(u, active) < self.b.tau]:
                active = [u for u in active if u not in short]
        return self.enough(active)

    def held_by(self, u: int, members: Iterable[int]) -> int:
        return len(set(self.holders(u)) & set(members))

    def _rebuildable(self, members: list[int]) -> list[int]:
        self.enough(members)
        for u in self.active:
            require(self.held_by(u, members) >= self.b.tau, "NotEnoughSurvivors")
        return members

    def run_step(
        self, step: Step, inputs: dict[int, dict[str, list[int]]], drops: dict[int, str]
    ) -> dict[str, list[int]]:
        """Return the totals; `survivors` says whose."""
        self.key_step += 1
        j = self.key_step
        stays = lambda u, *phases: drops.get(u) not in phases  # noqa: E731
        self.active, self.survivors = self.choose_active(), None
        lost = sorted(pair for pair in self.lost if set(pair) <= set(self.active))
        pairs: list[Item] = [[self.b.roster.index(u) for u in pair] for pair in lost]
        request: list[Item] = [0x17, j, self.bits(self.active), pairs]
        self.down("masked_input", self.active, lambda _: request)
        bound = on(self.b, self.off1, j, step, self.active, lost=lost)
        summed = {s.name: [0] * s.length for s in step.sections}
        senders = [u for u in self.active if stays(u, "masked_input")]
        for u in senders:
            masked = self._masked(u, bound, step, inputs[u])
            for s in step.sections:
                summed[s.name] = [
                    a + b for a, b in zip(summed[s.name], masked[s.name], strict=True)
                ]
            packed: list[Item] = [
                pack_vector(masked[s.name], width_of(len(self.b.roster), s.maximum))
                for s in step.sections
            ]
            self.up("masked_input", u, [0x14, j, packed], bound)
        self.told |= dict.fromkeys(senders, self.active)
        u3 = self.survivors = self._rebuildable(senders)
        survivor_set: list[Item] = [0x15, self.bits(u3)]
        self.down("masked_input", u3, lambda _: survivor_set)
        agreed = d("survivors", bound, self.bits(u3))
        asked = self._consistency(j, u3, agreed, stays) if self.b.malicious else u3
        answering = [u for u in asked if stays(u, "unmasking")]
        answers = {u: self._unmask(u, j, u3, agreed) for u in answering}
        self._rebuildable(answering)
        return self._unmasked(step, bound, summed, answers)

    def _masked(
        self, u: int, bound: bytes, step: Step, inputs: dict[str, list[int]]
    ) -> dict[str, list[int]]:
        return {
            s.name: self._add(
                inputs[s.name], [(1, self._self_key(u, bound)), *self._pair_keys(u, bound)], i, s
            )
            for i, s in enumerate(step.sections)
        }

    def _self_key(self, u: int, bound: bytes) -> bytes:
        return hkdf(self.secrets[u].seeds[self.key_step][1], "self", u64(u), bound)

    def _pair_keys(self, u: int, bound: bytes) -> list[tuple[int, bytes]]:
        private = self.mask_private(u, self.key_step)
        keys = []
        for v in self.near(u):
            if v in self.active:
                shared = x25519(private, public_of(self.mask_private(v, self.key_step)))
                key = hkdf(shared, "pair", u64(min(u, v)), u64(max(u, v)), bound)
                keys.append((1 if u > v else -1, key))
        return keys

    def _add(
        self, values: list[int], keys: list[tuple[int, bytes]], index: int, s: Section
    ) -> list[int]:
        p = PRIMES[width_of(len(self.b.roster), s.maximum)]
        for sign, key in keys:
            own = hkdf(key, "section", u64(index), s.name.encode())
            mask = expand(own, p, s.length)
            values = [(x + sign * m) % p for x, m in zip(values, mask, strict=True)]
        return values

    def _consistency(
        self, j: int, u3: list[int], agreed: bytes, stays: Callable[..., bool]
    ) -> list[int]:
        u4 = [u for u in u3 if stays(u, "consistency")]
        self.told |= dict.fromkeys(u4, u3)
        signed: dict[int, Item] = {
            u: self.up("consistency", u, [0x19, j], agreed)[-64:] for u in u4
        }
        self.enough(u4)
        shown = dict.fromkeys(u4, u4)
        if self.b.chosen:
            self._rebuildable(u4)
            shown = {u: [v for v in u4 if v in self.holders(u)] for u in u4}
        self.down(
            "consistency", u4, lambda u: [0x1A, self.bits(shown[u]), [signed[v] for v in shown[u]]]
        )
        return u4

    def _unmask(self, u: int, j: int, u3: list[int], agreed: bytes) -> dict[int, int]:
        held = self.secrets[u].held
        mine = [v for v in self.holds(u) if v in self.active]
        given = {v: held[v][j][1 if v in u3 else 0] for v in mine}
        lists: list[Item] = [
            [given[v].to_bytes(32, "big") for v in mine if (v in u3) == alive]
            for alive in (True, False)
        ]
        self.up("unmasking", u, [0x16, j, *lists], agreed)
        return given

    def _unmasked(
        self,
        step: Step,
        bound: bytes,
        summed: dict[str, list[int]],
        answers: dict[int, dict[int, int]],
    ) -> dict[str, list[int]]:
        """What the server does with the shares that it got, and with nothing else."""
        u3, j = self.survivors or [], self.key_step
        keys: list[tuple[int, bytes]] = []
        for v in self.active:
            shares = {self.point(u): given[v] for u, given in answers.items() if v in given}
            fewest = dict(sorted(shares.items())[: self.b.tau])
            seed = interpolate(fewest).to_bytes(32, "big")
            kind = KINDS[v in u3]
            commitment = d("commitment", self.off0, u64(v), u64(j), kind, seed)
            require(commitment in self.commitments(v))
            if v in u3:
                keys.append((-1, hkdf(seed, "self", u64(v), bound)))
                continue
            private = hkdf(seed, "mask key", u64(v), u64(j), self.off0)
            for u in self.near(v):
                if u in u3:
                    shared = x25519(private, public_of(self.mask_private(u, j)))
                    key = hkdf(shared, "pair", u64(min(u, v)), u64(max(u, v)), bound)
                    keys.append((-1 if u > v else 1, key))
        return {s.name: self._add(summed[s.name], keys, i, s) for i, s in enumerate(step.sections)}


# -- 7 quantization ----------------------------------------------------------------------------


def rounding_key(seed: bytes, step: int, name: str) -> bytes:
    """SPEC 7.3."""
    return hkdf(seed, "rounding", u64(step), name.encode())


def quantized(values: list[float], maximum: int, clip: float, key: bytes) -> list[int]:
    """SPEC 7.1, with the rounding stream of a key."""
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    resolution = 2 * clip / maximum
    found = []
    for value in values:
        r = int.from_bytes(stream.update(bytes(4)), "little") * 2.0**-32
        x = 0.0 if math.isnan(value) else min(max(value, -clip), clip)
        found.append(min(maximum, math.floor((x + clip) / resolution + r)))
    return found


def next_clip(maximum: int, clip: float, mean: list[float], count: int) -> float:
    """SPEC 7.4."""
    rounding = (2 * clip / maximum) ** 2 / (4 * count)
    spread = math.sqrt(max(0.0, sum(x * x for x in mean) / len(mean) - rounding))
    wanted = min(max(2 * math.sqrt(count) * spread, clip / 2), 2 * clip)
    return min(max(wanted, 2.0**-20), 2.0**20)


# -- 2.4 policy, 8.8 ---------------------------------------------------------------------------


def refused_by(policy: dict, asked: dict) -> str | None:
    """What a policy refuses first: the batch, |U1|, the task; None: nothing."""
    t, colluders = asked["threshold"], policy["colluders"]
    batch = [
        asked["threat_model"] == "malicious",
        asked["M"] <= policy["max_steps"],
        asked["n"] >= policy["min_clients"],
        t - colluders >= policy["min_honest"],
    ]
    if asked["chosen"]:
        split = split_bound(asked["n"], colluders, *asked["chosen"])
        batch.append(split <= Fraction(1, 2 ** policy["sigma"]))
    if not all(batch):
        return "batch"
    members = asked["members"]
    if members < policy["min_clients"] or 2 * t <= members + colluders:
        return "members"
    sections = asked["sections"]
    task = [
        asked["step"] >= policy["first_step"],
        policy["kinds"] is None or asked["kind"] in policy["kinds"],
        sum(length for length, _, _ in sections) <= policy["max_length"],
        all(maximum <= policy["max_input"] for _, maximum, _ in sections),
        all(policy["min_clip"] <= clip <= policy["max_clip"] for _, _, clip in sections),
    ]
    return None if all(task) else "task"


def split_bound(n: int, corrupt: int, k: int, tau: int) -> Fraction:
    """SPEC 8.8, exactly."""
    total, every = Fraction(0), math.comb(n - 1, k)
    for a in range(1, (n - corrupt) // 2 + 1):
        marked = a - 1 + corrupt
        ways = sum(
            math.comb(marked, i) * math.comb(n - 1 - marked, k - i)
            for i in range(max(0, 2 * tau - k), k + 1)
        )
        total += math.comb(n - corrupt, a) * Fraction(ways, every) ** a
    return total


# -- 3.7 wrong shares --------------------------------------------------------------------------


def recovered(
    shares: dict[int, int], tau: int, commitment: bytes, name: tuple[bytes, ...]
) -> tuple[bytes, list[int]]:
    """The seed and the x of the wrong shares, of one doubtful seed alone."""

    def fit(given: dict[int, int]) -> bytes | None:
        if len(given) < tau:
            return None
        seed = interpolate(dict(sorted(given.items())[:tau])).to_bytes(32, "big")
        return seed if d("commitment", *name, seed) == commitment else None

    if seed := fit(shares):
        return seed, []
    right = {x: shares[x] for x in shares if x not in errors(shares, tau)}
    if seed := fit(right):
        return seed, sorted(set(shares) - set(right))
    tried: set[tuple[int, ...]] = set()
    for out in range(len(shares) - tau + 1):
        for gone in combinations(sorted(shares), out):
            chosen = tuple(x for x in sorted(shares) if x not in gone)[:tau]
            if chosen in tried or len(tried) == 512:
                continue
            tried.add(chosen)
            if seed := fit({x: shares[x] for x in chosen}):
                dealt = shares_of(int.from_bytes(seed, "big"), tau, name, shares)
                wrong = [x for x, y in zip(shares, dealt, strict=True) if shares[x] != y]
                return seed, sorted(wrong)
    raise RefusedError("SeedLost")


def errors(values: dict[int, int], tau: int) -> set[int]:
    """Where the values differ from the one polynomial that is near enough, by trying them all."""
    for some in combinations(sorted(values), tau) if len(values) > tau else ():
        known = {x: values[x] for x in some}
        far = {x for x in values if value_at(known, x) != values[x]}
        if len(far) <= (len(values) - tau) // 2:
            return far
    return set()


def value_at(known: dict[int, int], x: int) -> int:
    """The polynomial through some points, at x: `interpolate`, moved by x."""
    return known[x] if x in known else interpolate({u - x: y for u, y in known.items()})


# -- negative cases ----------------------------------------------------------------------------

_UPLOADS = (0x10, 0x12, 0x18, 0x14, 0x19, 0x16, 0x30, 0x32, 0x40)
_TAGS = {
    "advertise_keys": 0x10,
    "share_keys": 0x12,
    "masked_input": 0x14,
    "unmasking": 0x16,
    "consistency": 0x19,
    "draw_graph": 0x32,
}
# Fields after the tag: an integer, bytes of a length (0: any), or a list of such bytes.
_FIELDS: dict[int, list[str | int | list[int | str]]] = {
    0x10: [32, [32], 32],
    0x11: [0, [0]],
    0x12: [[32], [0]],
    0x13: [0, [0]],
    0x14: ["int", [0]],
    0x15: [0],
    0x16: ["int", [32], [32]],
    0x17: ["int", 0, ["pair"]],
    0x18: [0],
    0x19: ["int"],
    0x1A: [0, [64]],
    0x1B: [0, 64],
    0x30: [32, [32], 32, 32],
    0x31: [0, [32]],
    0x32: [32],
    0x33: [0, [32], [0]],
    0x40: [32, [32], 32, 0],
    0x41: [0, 0, [0]],
}


def decoded(data: bytes) -> list[Item]:
    """Tag and fields of a canonical message (SPEC 5.1, 5.2)."""
    message = unpack(data)
    require(isinstance(message, list) and bool(message), "DecodeError")
    assert isinstance(message, list)
    tag, *values = message
    require(isinstance(tag, int) and tag in _FIELDS, "DecodeError")
    kinds = _FIELDS[tag]  # type: ignore[index]
    require(len(kinds) == len(values), "DecodeError")
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, list):
            require(isinstance(value, list), "DecodeError")
            for item in value:  # type: ignore[union-attr]
                require(_is_item(item, kind[0]), "DecodeError")
        elif kind == "int":
            require(isinstance(value, int), "DecodeError")
        else:
            require(_is_bytes(value, int(kind)), "DecodeError")
    return message


def _is_item(item: Item, kind: int | str) -> bool:
    if kind == "pair":
        return isinstance(item, list) and len(item) == 2 and all(isinstance(x, int) for x in item)
    return _is_bytes(item, int(kind))


def _is_bytes(item: Item, length: int) -> bool:
    return isinstance(item, bytes) and (not length or len(item) == length)


@dataclass
class Inspector:
    """Says what must be refused, in a run that has come to the phase at hand.

    Args:
        run: every message before the one at hand was sent.
        step: the step that runs, if one does.
    """

    run: Reference
    step: Step

    def server(self, phase: str, sender: int, data: bytes) -> None:
        """Raise `RefusedError` unless the server accepts the upload."""
        run, b = self.run, self.run.b
        message = decoded(data)
        if b.malicious:
            require(message[0] == 0x1B, "DecodeError")
            body, signature = message[1], message[2]
            assert isinstance(body, bytes)
            assert isinstance(signature, bytes)
            message = decoded(body)
            self._verify(phase, sender, body, signature)
        require(message[0] in _UPLOADS, "DecodeError")
        first = 0x40 if b.chosen else 0x30 if b.ring else 0x10
        require(message[0] not in {0x10, 0x30, 0x40} - {first}, "DecodeError")
        require(message[0] == (first if phase == "advertise_keys" else _TAGS[phase]))
        match phase:
            case "advertise_keys":
                if b.chosen:
                    self._choice(sender, message)
                self._advertisement(message)
            case "draw_graph":
                require(
                    d("nonce", run.off0, u64(sender), message[1]) == run.nonce_commitment(sender)
                )  # type: ignore[arg-type]
            case "share_keys":
                self._bundles(sender, message)
            case "masked_input":
                self._vectors(message)
            case "consistency":
                require(message[1] == run.key_step)
            case "unmasking":
                self._shares(sender, message)

    def _verify(self, phase: str, sender: int, body: bytes, signature: bytes) -> None:
        run = self.run
        bound = on(run.b, run.off1, 0, self.step, run.active) if run.active else b""
        agreed = d("survivors", bound, run.bits(run.survivors or []))
        context = {
            "advertise_keys": run.off0,
            "share_keys": run.off1,
            "masked_input": bound,
        }.get(phase, agreed)
        identity = Ed25519PublicKey.from_public_bytes(identity_of(run.b.signing[sender]))
        try:
            identity.verify(signature, d("signed", context, u64(sender), body))
        except Exception:  # noqa: BLE001 - of whatever kind
            raise RefusedError("RemoteProtocolError") from None

    def _advertisement(self, message: list[Item]) -> None:
        channel, keys = message[1], message[2]
        assert isinstance(channel, bytes)
        assert isinstance(keys, list)
        require(len(keys) == self.run.b.steps)
        everything = [channel, *keys]
        require(len(set(everything)) == len(everything))  # type: ignore[arg-type]
        for key in everything:
            try:
                x25519(bytes(range(32)), key)  # type: ignore[arg-type]
            except ValueError:
                raise RefusedError("RemoteProtocolError") from None

    def _choice(self, sender: int, message: list[Item]) -> list[int]:
        assert self.run.b.chosen
        assert isinstance(message[4], bytes)
        chosen = members_of(self.run.b.roster, message[4])
        require(len(chosen) == self.run.b.chosen[0] and sender not in chosen)
        return chosen

    def _bundles(self, sender: int, message: list[Item]) -> None:
        commitments, bundles = message[1], message[2]
        assert isinstance(commitments, list)
        assert isinstance(bundles, list)
        size = 64 * self.run.b.steps + 16
        require(len(commitments) == 2 * self.run.b.steps)
        to = [v for v in self.run.holders(sender) if v != sender]
        require(len(bundles) == len(to))
        require(all(isinstance(bundle, bytes) and len(bundle) == size for bundle in bundles))
        listed = d("commitments", *commitments)  # type: ignore[arg-type]
        require(listed == d("commitments", *self.run.commitments(sender)))

    def _vectors(self, message: list[Item]) -> None:
        vectors = message[2]
        assert isinstance(vectors, list)
        require(message[1] == self.run.key_step)
        require(len(vectors) == len(self.step.sections), "DecodeError")
        for vector, s in zip(vectors, self.step.sections, strict=True):
            assert isinstance(vector, bytes)
            unpack_vector(vector, width_of(len(self.run.b.roster), s.maximum), s.length)

    def _shares(self, sender: int, message: list[Item]) -> None:
        run = self.run
        require(message[1] == run.key_step)
        mine = [v for v in run.holds(sender) if v in run.active]
        alive = [v for v in mine if v in (run.survivors or [])]
        for given, expected in zip(message[2:], (len(alive), len(mine) - len(alive)), strict=True):
            assert isinstance(given, list)
            for share in given:
                assert isinstance(share, bytes)
                require(int.from_bytes(share) < SHAMIR, "DecodeError")
            require(len(given) == expected)

    def client(self, phase: str, me: int, data: bytes) -> None:
        """Raise `RefusedError` unless the client goes on; ``phase`` is that of its answer."""
        run, b = self.run, self.run.b
        tag, *values = decoded(data)
        expected = {
            "draw_graph": 0x31,
            "share_keys": 0x41 if b.chosen else 0x33 if b.ring else 0x11,
            "masked_input": 0x17,
            "consistency": 0x15,
            "unmasking": 0x1A if b.malicious else 0x15,
        }
        require(tag == expected[phase], "DecodeError")
        sets = [members_of(b.roster, v) for v in values if isinstance(v, bytes)]
        members = sets[0] if sets else []
        proof = phase == "unmasking" and b.malicious
        require(len(members) >= (b.tau if proof else b.threshold))
        if not proof:
            require(me in members)
        match phase:
            case "draw_graph":
                (listed,) = values[1:]
                assert isinstance(listed, list)
                require(len(listed) == len(members))
                require(listed[members.index(me)] == run.nonce_commitment(me))
            case "share_keys" if b.chosen:
                self._chosen_directory(me, members, sets[1], values[2])
            case "share_keys" if b.ring:
                self._ring_directory(me, members, values)
            case "share_keys":
                self._directory(me, members, values[1])
            case "masked_input":
                require(isinstance(values[0], int) and values[0] < b.steps)
                self._lost(me, members, values[2])
                require(set(members) <= set(run.u2) and run.held_by(me, members) >= b.tau)
                require(not b.malicious or set(members) <= set(run.told.get(me, members)))
            case "unmasking" if b.malicious:
                if b.chosen:
                    require(set(members) <= set(run.holders(me)) & set(run.active))
                self._proof(members, values[1])
            case _:
                require(set(members) <= set(run.active) and run.held_by(me, members) >= b.tau)

    def _lost(self, me: int, members: list[int], pairs: Item) -> None:
        """SPEC 5.5 and 6.3: the list of pairs, and what it leaves of the holders."""
        run, roster = self.run, self.run.b.roster
        assert isinstance(pairs, list)
        require(all(i < k < len(roster) for i, k in pairs), "DecodeError")  # type: ignore[misc]
        require(sorted(map(tuple, pairs)) == [*map(tuple, pairs)], "DecodeError")  # type: ignore[arg-type]
        require(len(set(map(tuple, pairs))) == len(pairs), "DecodeError")  # type: ignore[arg-type]
        named = {(roster[i], roster[k]) for i, k in pairs}  # type: ignore[misc, index]
        require(all(set(pair) <= set(members) for pair in named))
        gone = {v for pair in named if me in pair for v in pair if v != me}
        require(len((set(run.holders(me)) & set(members)) - gone) >= run.b.tau)
        for u in members if not run.b.ring and not run.b.chosen else ():
            require(len(members) - sum(u in pair for pair in named) >= run.b.tau)

    def _directory(self, me: int, members: list[int], adverts: Item) -> None:
        run = self.run
        assert isinstance(adverts, list)
        require(len(adverts) == len(members))
        require(adverts[members.index(me)] == run.adverts[me])
        keys: list[Item] = []
        for u, sent in zip(members, adverts, strict=True):
            assert isinstance(sent, bytes)
            message = decoded(sent)
            if run.b.malicious:
                require(message[0] == 0x1B)
                self._verify("advertise_keys", u, message[1], message[2])  # type: ignore[arg-type]
                message = decoded(message[1])  # type: ignore[arg-type]
            require(message[0] == 0x10 and len(message[2]) == run.b.steps)  # type: ignore[arg-type]
            keys += [message[1], *message[2]]  # type: ignore[misc]
        require(len(set(keys)) == len(keys))  # type: ignore[arg-type]

    def _ring_directory(self, me: int, members: list[int], values: list[Item]) -> None:
        run = self.run
        nonces, adverts = values[1], values[2]
        assert isinstance(nonces, list)
        assert isinstance(adverts, list)
        require(len(members) >= run.b.tau + 1 and len(nonces) == len(members))
        for u, nonce in zip(members, nonces, strict=True):
            assert isinstance(nonce, bytes)
            require(d("nonce", run.off0, u64(u), nonce) == run.nonce_commitment(u))
        require(len(adverts) == len(run.neighbours(me)))
        for v, sent in zip(run.neighbours(me), adverts, strict=True):
            assert isinstance(sent, bytes)
            message = decoded(sent)
            require(message[0] == 0x30 and message[4] == run.nonce_commitment(v))

    def _chosen_directory(
        self, me: int, members: list[int], near: list[int], adverts: Item
    ) -> None:
        run, b = self.run, self.run.b
        assert isinstance(adverts, list)
        assert b.chosen
        mine = [v for v in run.chosen_by(me) if v in members]
        require(set(near) <= set(members) - {me} and len(adverts) == len(near))
        require(set(mine) <= set(near) and len(mine) >= b.tau)
        keys: list[Item] = [public_of(run.secrets[me].channel)]
        keys += [public_of(run.mask_private(me, j)) for j in range(b.steps)]
        choosers = 0
        for v, sent in zip(near, adverts, strict=True):
            assert isinstance(sent, bytes)
            _, body, signature = decoded(sent)
            message = decoded(body)  # type: ignore[arg-type]
            require(message[0] == 0x40, "DecodeError")
            self._verify("advertise_keys", v, body, signature)  # type: ignore[arg-type]
            chosen = self._choice(v, message)
            require(v in mine or me in chosen)
            choosers += me in chosen
            require(len(message[2]) == b.steps)  # type: ignore[arg-type]
            keys += [message[1], *message[2]]  # type: ignore[misc]
        require(choosers <= 3 * b.chosen[0] and len(set(keys)) == len(keys))  # type: ignore[arg-type]

    def _proof(self, signers: list[int], signatures: Item) -> None:
        run = self.run
        assert isinstance(signatures, list)
        require(len(signatures) == len(signers) and set(signers) <= set(run.survivors or []))
        for u, signature in zip(signers, signatures, strict=True):
            assert isinstance(signature, bytes)
            self._verify("consistency", u, pack([0x19, 0]), signature)
