"""Frozen, validated parameters of batches and steps, with the overflow proof (SPEC 2)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal, get_args

from protocols.errors import ConfigError
from protocols.phases import ThreatModel
from protocols.primitives.field import PrimeField

GraphName = Literal["complete", "ring", "chosen"]

DIGEST_SIZE = 32
IDENTITY_SIZE = 32
NONCE_SIZE = 32
MIN_CLIENTS = 3
MAX_CLIENTS = 1 << 14
MAX_INPUT = 1 << 24
MAX_SECTIONS = 16
MAX_LENGTH = 1 << 28
MAX_NAME_BYTES = 64
MAX_STEPS = 1 << 10
KEY_ATTEMPTS = 5
"""How often the exchange of one batch is tried until all expected clients have shared (D13).

If 10 % of ten clients drop out of an attempt at random, one attempt in three reaches all of them,
and five attempts miss somebody in about one case of nine.
"""
MAX_U64 = (1 << 64) - 1
MAX_CLIP = 2.0**1023


def default_threshold(n: int) -> int:
    """Return floor(2n/3) + 1, the clients of n that must answer every round (SPEC 2.1).

    So about a third of the clients may drop out, and in the malicious model, which needs
    2t > n + n_C, about a third may collude with the server.
    """
    return 2 * n // 3 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One named vector of the input, summed in its own field (SPEC 2.2).

    Args:
        name: unique within the aggregation, 1..64 bytes of UTF-8.
        length: number of entries, 1..2^28. An empty section would carry nothing.
        maximum: inputs are integers 0..maximum; 1..2^24.
        clip: positive bound that the integers encode, in the caller's unit. The protocol only binds
            it into the context, so clients that clip differently get no sum.

    Raises:
        ConfigError: any of these does not hold.
    """

    name: str
    length: int
    maximum: int
    clip: float

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_range("section length", self.length, 1, MAX_LENGTH)
        _check_range("section maximum", self.maximum, 1, MAX_INPUT)
        # One comparison refuses NaN, infinity, and an integer that no double can hold.
        if not 0 < self.clip <= MAX_CLIP:
            raise ConfigError("clip must be positive and finite")


@dataclass(frozen=True, slots=True)
class Ring:
    """The k-regular graph and the threshold of a neighbourhood (SPEC 1.4).

    `graph_parameters.ring_parameters` finds safe values. `BatchParams` checks that the degree fits
    the roster.

    Attributes:
        degree: k, the number of neighbours of every client.
        threshold: τ, shares that rebuild a seed, and neighbours that must stay; 2..k.

    Raises:
        ConfigError: a value is out of range. With τ = 1 the polynomial would be constant, and
            every share would be the seed itself.
    """

    degree: int
    threshold: int

    def __post_init__(self) -> None:
        _check_range("degree of the ring", self.degree, 2, MAX_CLIENTS - 1)
        _check_range("threshold of a neighbourhood", self.threshold, 2, self.degree)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The graph that clients choose themselves, of the malicious model (SPEC 1.4, 8.8).

    `graph_parameters.chosen_parameters` finds safe values. A client's policy checks them.

    Attributes:
        degree: k, how many others every client chooses; they hold its shares.
        threshold: τ, shares that rebuild a seed, and holders that must stay; k//2 + 1..k.

    Raises:
        ConfigError: a value is out of range. With 2τ <= k, half of the holders could open one of a
            client's seeds and the other half the other one.
    """

    degree: int
    threshold: int

    def __post_init__(self) -> None:
        _check_range("clients that each chooses", self.degree, 2, MAX_CLIENTS - 1)
        least = self.degree // 2 + 1
        _check_range("threshold of the chosen", self.threshold, least, self.degree)

    @property
    def most_choosers(self) -> int:
        """How many may choose one client; whoever is chosen by more refuses (SPEC 6.2)."""
        return 3 * self.degree


@dataclass(frozen=True, slots=True, kw_only=True)
class _Agreed:
    """What all parties agree on for a whole session; the base of three classes (SPEC 2.1).

    Args:
        session: 32 public bytes, unique to this training session.
        roster: client ids, strictly ascending, 3..16384 of them, each 0..2^64 - 1.
        threshold: t, clients that must answer every round; n//2 + 1..n.
        threat_model: what the clients assume about the server.
        identities: malicious model: the clients' Ed25519 public keys in roster order, all
            different. Every client knows them by other means than the server. Else empty.
        ring: the k-regular graph, semi-honest model only; its degree is even or n - 1.
        chosen: the graph that clients choose, malicious model only. Without this and without a
            ring the graph is complete.
    """

    session: bytes
    roster: tuple[int, ...]
    threshold: int
    threat_model: ThreatModel = "semi-honest"
    identities: tuple[bytes, ...] = ()
    ring: Ring | None = None
    chosen: Chosen | None = None

    @property
    def n(self) -> int:
        """Roster size."""
        return len(self.roster)

    @property
    def graph(self) -> GraphName:
        """Which of the three graphs this is (SPEC 1.4)."""
        if self.chosen is not None:
            return "chosen"
        return "complete" if self.ring is None else "ring"

    @property
    def malicious(self) -> bool:
        """Whether clients sign their messages and compare survivor sets."""
        return self.threat_model == "malicious"

    def agreed(self) -> dict[str, Any]:
        """Return these fields by name, as arguments of the classes that have them."""
        return {field.name: getattr(self, field.name) for field in fields(_Agreed)}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchParams(_Agreed):
    """Everything all parties must agree on before keys are made for M steps (SPEC 2.1).

    Args:
        batch: never reused in the session, whatever happened to it; 0..2^64 - 1.
        steps: M, the number of steps that keys are made for; 1..1024.
        session, roster, threshold, threat_model, identities, ring, chosen: see `_Agreed`.

    Raises:
        ConfigError: a value is out of range, or two of them do not fit each other.
    """

    batch: int
    steps: int

    def __post_init__(self) -> None:
        _check_digest("session", self.session)
        _check_range("batch", self.batch, 0, MAX_U64)
        _check_range("steps of a batch", self.steps, 1, MAX_STEPS)
        _check_range("roster size", self.n, MIN_CLIENTS, MAX_CLIENTS)
        if not all(a < b for a, b in pairwise(self.roster)):
            raise ConfigError("roster is not strictly ascending")
        _check_range("client id", self.roster[0], 0, MAX_U64)
        _check_range("client id", self.roster[-1], 0, MAX_U64)
        _check_range("threshold", self.threshold, self.n // 2 + 1, self.n)
        self._check_identities()
        self._check_ring()
        self._check_chosen()

    @property
    def share_threshold(self) -> int:
        """τ: how many shares rebuild a seed, and how many of their holders must stay (SPEC 1.4)."""
        sparse = self.chosen or self.ring
        return self.threshold if sparse is None else sparse.threshold

    def identity(self, client: int) -> bytes:
        """Return the public key that everybody knows of a member of the roster."""
        return self.identities[self.roster.index(client)]

    def _check_identities(self) -> None:
        if self.threat_model not in get_args(ThreatModel):
            raise ConfigError(f"unknown threat model {self.threat_model!r}")
        if len(set(self.identities)) != (self.n if self.malicious else 0):
            raise ConfigError("one identity per client in the malicious model, else none")
        if any(len(identity) != IDENTITY_SIZE for identity in self.identities):
            raise ConfigError(f"an identity has {IDENTITY_SIZE} bytes")

    def _check_ring(self) -> None:
        if self.ring is None:
            return
        if self.malicious:
            # A server that may lie about k clients cuts any arc off the ring and learns its sum.
            raise ConfigError("no ring in the malicious model: a lying server cuts it (SPEC 8.7)")
        degree = self.ring.degree
        # k/2 neighbours on either side: an odd k fits only where everybody is a neighbour.
        if degree >= self.n or (degree % 2 and degree != self.n - 1):
            raise ConfigError(f"a ring of {self.n} clients has no neighbourhoods of {degree}")

    def _check_chosen(self) -> None:
        if self.chosen is None:
            return
        if not self.malicious or self.ring is not None:
            raise ConfigError("chosen neighbours are for the malicious model, in place of a ring")
        if self.chosen.degree >= self.n:
            raise ConfigError(f"of {self.n} clients none can choose {self.chosen.degree} others")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms(_Agreed):
    """What the server and all clients agree on for a session; every batch has these.

    Args:
        rejoin: malicious model: whether a client that missed a step may be back in the next one.
        session, roster, threshold, threat_model, identities, ring, chosen: see `_Agreed`.
    """

    rejoin: bool = False

    def batch(self, number: int, steps: int) -> BatchParams:
        """Return the parameters of a key batch."""
        return BatchParams(batch=number, steps=steps, **self.agreed())


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one step sums; known only once the step's broadcast is (SPEC 2.1).

    Args:
        step: protocol step, never reused within the session; 0..2^64 - 1.
        kind: what is summed, for instance "gradient"; 1..64 bytes of UTF-8.
        sections: 1..16 of them with different names.
        broadcast_digest: SHA-256 of everything the clients' inputs depend on.

    Raises:
        ConfigError: any of these does not hold.
    """

    step: int
    kind: str
    sections: tuple[Section, ...]
    broadcast_digest: bytes

    def __post_init__(self) -> None:
        _check_range("step", self.step, 0, MAX_U64)
        _check_name(self.kind)
        _check_range("number of sections", len(self.sections), 1, MAX_SECTIONS)
        if len({section.name for section in self.sections}) != len(self.sections):
            raise ConfigError("section names repeat")
        _check_digest("broadcast digest", self.broadcast_digest)

    def fields(self, n: int) -> tuple[PrimeField, ...]:
        """Return for each section the smallest field that holds a sum of n inputs (SPEC 2.3).

        Raises:
            ConfigError: a sum could wrap in a 32-bit field.
        """
        return tuple(PrimeField.for_sum(n, section.maximum) for section in self.sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationParams(_Agreed):
    """One aggregation on its own: a batch of one step, whose number is the step's (SPEC 2.1).

    Args:
        step, kind, sections, broadcast_digest: see `Task`.
        session, roster, threshold, threat_model, identities, ring, chosen: see `_Agreed`.

    Raises:
        ConfigError: see `BatchParams` and `Task`, or a sum could wrap in a 32-bit field.
    """

    step: int
    kind: str
    sections: tuple[Section, ...]
    broadcast_digest: bytes

    def __post_init__(self) -> None:
        self.task.fields(self.batch.n)

    @property
    def batch(self) -> BatchParams:
        """What is known before the broadcast."""
        return BatchParams(batch=self.step, steps=1, **self.agreed())

    @property
    def task(self) -> Task:
        """What is known with the broadcast."""
        return Task(
            step=self.step,
            kind=self.kind,
            sections=self.sections,
            broadcast_digest=self.broadcast_digest,
        )

    def field(self, section: Section) -> PrimeField:
        """Return the smallest field that holds the sum over the whole roster (SPEC 2.3)."""
        return PrimeField.for_sum(self.n, section.maximum)


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{what} {value} is outside {low}..{high}")


def _check_name(name: str) -> None:
    # Python's str can hold a lone surrogate, which has no UTF-8 encoding. Without "surrogatepass"
    # such a name would raise UnicodeEncodeError instead of ConfigError.
    if not 1 <= len(name.encode(errors="surrogatepass")) <= MAX_NAME_BYTES or any(
        "\ud800" <= letter <= "\udfff" for letter in name
    ):
        raise ConfigError(f"a name has 1 to {MAX_NAME_BYTES} bytes of UTF-8")


def _check_digest(what: str, value: bytes) -> None:
    if len(value) != DIGEST_SIZE:
        raise ConfigError(f"{what} must have {DIGEST_SIZE} bytes")
