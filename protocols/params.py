"""Frozen, validated parameters of one aggregation, with the overflow proof (SPEC 2)."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from itertools import pairwise

from protocols.errors import ConfigError
from protocols.field import PrimeField

DIGEST_SIZE = 32
MIN_CLIENTS = 3
MAX_CLIENTS = 1 << 14
MAX_INPUT_BITS = 24
MAX_SECTIONS = 16
MAX_LENGTH = 1 << 28
MAX_NAME_BYTES = 64
MAX_U64 = (1 << 64) - 1


class Phase(enum.StrEnum):
    """The four rounds, in order (SPEC 6)."""

    ADVERTISE_KEYS = "advertise_keys"
    SHARE_KEYS = "share_keys"
    MASKED_INPUT = "masked_input"
    UNMASKING = "unmasking"


def default_threshold(n: int) -> int:
    """floor(2n/3) + 1: how many of n clients must answer every round (SPEC 2.1)."""
    return 2 * n // 3 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One named vector of the input, summed in its own field (SPEC 2.2).

    Args:
        name: unique within the aggregation, 1..64 bytes of UTF-8.
        length: number of entries, at least 1 (an empty section would carry nothing).
        bits: inputs are integers 0..2^bits - 1; 1..24.
        clip: positive bound that the integers encode, in the unit of the caller. The protocol
            only binds it into the context: clients that clip differently get no sum.

    Raises:
        ConfigError: any of these does not hold.
    """

    name: str
    length: int
    bits: int
    clip: float

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_range("section length", self.length, 1, MAX_LENGTH)
        _check_range("section bits", self.bits, 1, MAX_INPUT_BITS)
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigError("clip must be positive and finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationParams:
    """Everything all parties must agree on before the first message (SPEC 2.1).

    Args:
        session: 32 bytes, unique to this training session.
        step: protocol step, never reused within the session; 0..2^64 - 1.
        kind: what is summed, for instance "gradient"; 1..64 bytes of UTF-8.
        roster: client ids, strictly ascending, 3..16384 of them, each 0..2^64 - 1.
        threshold: clients that must answer every round; n//2 + 1..n.
        sections: 1..16 of them with different names.
        broadcast_digest: SHA-256 of everything the clients' inputs depend on.

    Raises:
        ConfigError: any of these does not hold, or a sum could wrap in a 32-bit field.
    """

    session: bytes
    step: int
    kind: str
    roster: tuple[int, ...]
    threshold: int
    sections: tuple[Section, ...]
    broadcast_digest: bytes

    def __post_init__(self) -> None:
        _check_digest("session", self.session)
        _check_digest("broadcast digest", self.broadcast_digest)
        _check_range("step", self.step, 0, MAX_U64)
        _check_name(self.kind)
        self._check_roster()
        self._check_sections()

    @property
    def n(self) -> int:
        """Roster size."""
        return len(self.roster)

    def field(self, section: Section) -> PrimeField:
        """The smallest field in which the sum over the whole roster cannot wrap (SPEC 2.3)."""
        return PrimeField.for_sum(self.n, section.bits)

    def _check_roster(self) -> None:
        _check_range("roster size", self.n, MIN_CLIENTS, MAX_CLIENTS)
        if not all(a < b for a, b in pairwise(self.roster)):
            raise ConfigError("roster is not strictly ascending")
        _check_range("client id", self.roster[0], 0, MAX_U64)
        _check_range("client id", self.roster[-1], 0, MAX_U64)
        _check_range("threshold", self.threshold, self.n // 2 + 1, self.n)

    def _check_sections(self) -> None:
        _check_range("number of sections", len(self.sections), 1, MAX_SECTIONS)
        if len({section.name for section in self.sections}) != len(self.sections):
            raise ConfigError("section names repeat")
        for section in self.sections:
            self.field(section)


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{what} {value} is outside {low}..{high}")


def _check_name(name: str) -> None:
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise ConfigError(f"a name has 1 to {MAX_NAME_BYTES} bytes")


def _check_digest(what: str, value: bytes) -> None:
    if len(value) != DIGEST_SIZE:
        raise ConfigError(f"{what} must have {DIGEST_SIZE} bytes")
