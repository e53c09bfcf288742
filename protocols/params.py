"""Frozen, validated parameters of batches and steps, with the overflow proof (SPEC 2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

from protocols.errors import ConfigError
from protocols.phases import ThreatModel
from protocols.primitives.field import PrimeField

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
MAX_U64 = (1 << 64) - 1
MAX_CLIP = 2.0**1023


def default_threshold(n: int) -> int:
    """floor(2n/3) + 1: how many of n clients must answer every round (SPEC 2.1)."""
    return 2 * n // 3 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One named vector of the input, summed in its own field (SPEC 2.2).

    Args:
        name: unique within the aggregation, 1..64 bytes of UTF-8.
        length: number of entries, at least 1 (an empty section would carry nothing).
        maximum: inputs are integers 0..maximum; 1..2^24.
        clip: positive bound that the integers encode, in the unit of the caller. The protocol
            only binds it into the context: clients that clip differently get no sum.

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
        if not 0 < self.clip <= MAX_CLIP:  # also of an integer too large for a float
            raise ConfigError("clip must be positive and finite")


@dataclass(frozen=True, slots=True)
class Ring:
    """The k-regular graph, and how many shares of a neighbourhood rebuild a seed (SPEC 1.4).

    `graph.ring_parameters` finds both; `BatchParams` checks that the degree fits the roster.

    Attributes:
        degree: k, neighbours of every client.
        threshold: shares that rebuild a seed, and neighbours that must stay; 2..k.

    Raises:
        ConfigError: there is no such ring. With a threshold of 1 every neighbour would hold the
            seeds themselves.
    """

    degree: int
    threshold: int

    def __post_init__(self) -> None:
        _check_range("degree of the ring", self.degree, 2, MAX_CLIENTS - 1)
        _check_range("threshold of a neighbourhood", self.threshold, 2, self.degree)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchParams:
    """Everything all parties must agree on before keys are made for M steps (SPEC 2.1).

    Args:
        session: 32 bytes, unique to this training session.
        batch: never reused in the session, whatever happened to it; 0..2^64 - 1.
        steps: M, the number of steps that keys are made for; 1..1024.
        roster: client ids, strictly ascending, 3..16384 of them, each 0..2^64 - 1.
        threshold: clients that must answer every round; n//2 + 1..n.
        threat_model: whom the server is taken for.
        identities: in the malicious model, the clients' Ed25519 public keys in roster order, all
            different, known to everybody by other means than the server; else empty.
        ring: the k-regular graph, semi-honest model only; its degree is even or n - 1. None is
            the complete graph.

    Raises:
        ConfigError: any of these does not hold.
    """

    session: bytes
    batch: int
    steps: int
    roster: tuple[int, ...]
    threshold: int
    threat_model: ThreatModel = "semi-honest"
    identities: tuple[bytes, ...] = ()
    ring: Ring | None = None

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

    @property
    def n(self) -> int:
        """Roster size."""
        return len(self.roster)

    @property
    def malicious(self) -> bool:
        """Whether messages are signed and survivor sets compared."""
        return self.threat_model == "malicious"

    @property
    def share_threshold(self) -> int:
        """Shares that rebuild a seed, and holders of them that must stay (SPEC 1.4)."""
        return self.threshold if self.ring is None else self.ring.threshold

    def identity(self, client: int) -> bytes:
        """The pinned public key of a member of the roster."""
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
            raise ConfigError("no ring in the malicious model: a lying server cuts it (SPEC 8.7)")
        degree = self.ring.degree
        if degree >= self.n or (degree % 2 and degree != self.n - 1):
            raise ConfigError(f"a ring of {self.n} clients has no neighbourhoods of {degree}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the server and all clients agree on for a session; every batch has these.

    Args:
        session: 32 public bytes, of this session alone.
        roster: client ids, strictly ascending.
        threshold: t, clients that must answer every round.
        threat_model: what clients assume of the server.
        identities: malicious model: public keys in roster order.
        ring: the k-regular graph; None is the complete graph.
        rejoin: malicious model: whether a client that missed a step may be back in the next one.
    """

    session: bytes
    roster: tuple[int, ...]
    threshold: int
    threat_model: ThreatModel = "semi-honest"
    identities: tuple[bytes, ...] = ()
    ring: Ring | None = None
    rejoin: bool = False

    @property
    def malicious(self) -> bool:
        """Whether messages are signed and survivor sets compared."""
        return self.threat_model == "malicious"

    def batch(self, number: int, steps: int) -> BatchParams:
        """Return the parameters of a batch of keys."""
        return BatchParams(
            session=self.session,
            batch=number,
            steps=steps,
            roster=self.roster,
            threshold=self.threshold,
            threat_model=self.threat_model,
            identities=self.identities,
            ring=self.ring,
        )


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
        """Per section the smallest field in which a sum of n inputs cannot wrap (SPEC 2.3).

        Raises:
            ConfigError: a sum could wrap in a 32-bit field.
        """
        return tuple(PrimeField.for_sum(n, section.maximum) for section in self.sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationParams:
    """One aggregation on its own: a batch of one step, whose number is the step's (SPEC 2.1).

    Args:
        session: see `BatchParams`.
        step: see `Task`.
        kind: see `Task`.
        roster: see `BatchParams`.
        threshold: see `BatchParams`.
        sections: see `Task`.
        broadcast_digest: see `Task`.
        threat_model: see `BatchParams`.
        identities: see `BatchParams`.
        ring: see `BatchParams`.

    Raises:
        ConfigError: see `BatchParams` and `Task`, or a sum could wrap in a 32-bit field.
    """

    session: bytes
    step: int
    kind: str
    roster: tuple[int, ...]
    threshold: int
    sections: tuple[Section, ...]
    broadcast_digest: bytes
    threat_model: ThreatModel = "semi-honest"
    identities: tuple[bytes, ...] = ()
    ring: Ring | None = None

    def __post_init__(self) -> None:
        self.task.fields(self.batch.n)

    @property
    def n(self) -> int:
        """Roster size."""
        return len(self.roster)

    @property
    def batch(self) -> BatchParams:
        """What is known before the broadcast."""
        return BatchParams(
            session=self.session,
            batch=self.step,
            steps=1,
            roster=self.roster,
            threshold=self.threshold,
            threat_model=self.threat_model,
            identities=self.identities,
            ring=self.ring,
        )

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
        """The smallest field in which the sum over the whole roster cannot wrap (SPEC 2.3)."""
        return PrimeField.for_sum(self.n, section.maximum)


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{what} {value} is outside {low}..{high}")


def _check_name(name: str) -> None:
    # A lone surrogate is no character: it has no bytes.
    if not 1 <= len(name.encode(errors="surrogatepass")) <= MAX_NAME_BYTES or any(
        "\ud800" <= letter <= "\udfff" for letter in name
    ):
        raise ConfigError(f"a name has 1 to {MAX_NAME_BYTES} bytes of UTF-8")


def _check_digest(what: str, value: bytes) -> None:
    if len(value) != DIGEST_SIZE:
        raise ConfigError(f"{what} must have {DIGEST_SIZE} bytes")
