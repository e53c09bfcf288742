"""GF(p) with p the largest prime below 2^b, vectorised over uint32 (SPEC 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError

MIN_BITS = 2
MAX_BITS = 32

# 2^b - _GAP[b] is the largest prime below 2^b; tests/protocols/primitives/test_field.py proves
# every row.
_GAP = {
    2: 1, 3: 1, 4: 3, 5: 1, 6: 3, 7: 1, 8: 5, 9: 3, 10: 3, 11: 9, 12: 3, 13: 1, 14: 3, 15: 19,
    16: 15, 17: 1, 18: 5, 19: 1, 20: 3, 21: 9, 22: 3, 23: 15, 24: 3, 25: 39, 26: 5, 27: 39,
    28: 57, 29: 3, 30: 35, 31: 1, 32: 5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrimeField:
    """The integers modulo p, p the largest prime below 2^bits.

    All vector operations take and return uint32 arrays of one shape with entries in [0, p).
    They do not check the range: `contains` checks what comes from outside.

    Args:
        bits: width of one element, 2..32.

    Raises:
        ConfigError: bits out of range.
    """

    bits: int

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigError(f"field width {self.bits} is outside {MIN_BITS}..{MAX_BITS}")

    @property
    def p(self) -> int:
        """The modulus."""
        return (1 << self.bits) - _GAP[self.bits]

    @classmethod
    def for_sum(cls, terms: int, maximum: int) -> Self:
        """Return the smallest field in which a sum of `terms` inputs cannot wrap (SPEC 2.3).

        Args:
            terms: number of summands, at least 1.
            maximum: summands are integers in [0, maximum], at least 1.

        Returns:
            The field with the smallest b such that p_b > terms * maximum.

        Raises:
            ConfigError: arguments below 1, or the sum needs more than 32 bits.
        """
        if terms < 1 or maximum < 1:
            raise ConfigError("a sum needs at least one term, and inputs that can differ")
        largest = terms * maximum
        for bits in range(max(MIN_BITS, largest.bit_length()), MAX_BITS + 1):
            field = cls(bits)
            if field.p > largest:
                return field
        raise ConfigError(f"{terms} inputs up to {maximum} do not fit a 32-bit field")

    def contains(self, values: NDArray[np.unsignedinteger]) -> bool:
        """Tell whether every entry is below p."""
        return values.size == 0 or int(values.max()) < self.p

    def add(self, a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return a + b mod p, element by element."""
        if self.bits == MAX_BITS:
            return self.reduce(a.astype(np.int64) + b)
        total = a + b
        # a + b < 2p < 2^32. If total < p, then total - p wraps around to something larger than it,
        # so the minimum is the reduced value in both cases, without a branch.
        reduced: NDArray[np.uint32] = np.minimum(total, total - np.uint32(self.p), out=total)
        return reduced

    def negate(self, a: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return -a mod p, element by element."""
        return np.where(a == 0, a, np.uint32(self.p) - a)

    def subtract(self, a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return a - b mod p, element by element."""
        return self.add(a, self.negate(b))

    def reduce(self, values: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the residues in [0, p) of any int64 values, negative ones included."""
        quotients = values // self.p  # by a constant: several times faster than np.mod
        quotients *= self.p
        return np.subtract(values, quotients, out=quotients).astype(np.uint32)
