"""A client's labels as integers on a grid, for sums with noise (client-level DP).

This is the distributed discrete mechanism of Kairouz, Liu, Steinke (ICML 2021): a client clips its
stacked labels, rotates them at random, rounds them at random to a grid, adds a share of integer
noise, and masks the result.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import VERSION, LabelRequest, digest, encode
from protocols.primitives.keys import hkdf
from protocols.primitives.prg import keystream

# The clip is LEVELS * sqrt(dimension) integers long. With 16, rounding adds 0.1 % to the
# sensitivity.
LEVELS = 16
# Conditional rounding: a draw is accepted with probability 1 - beta at least.
_BETA = math.exp(-0.5)
_ATTEMPTS = 64
# Rotated coordinates are nearly Gaussian with standard deviation `LEVELS`; magnitudes up to so
# many standard deviations fit.
REACH = 8


@dataclass(frozen=True, slots=True)
class LabelGrid:
    """The grid of integers that stand for a stack of B label vectors.

    Attributes:
        dreams, classes: B and the classes; a vector is probabilities less 1 / classes.
    """

    dreams: int
    classes: int

    @property
    def length(self) -> int:
        """Coordinates after rotation: the next power of two."""
        return 1 << (self.dreams * self.classes - 1).bit_length()

    @property
    def clip(self) -> float:
        """The largest Euclidean norm of a stack; no stack of probabilities is longer."""
        # |p - 1/K|^2 = |p|^2 - 1/K <= 1 - 1/K for probabilities p of K classes.
        return math.sqrt(self.dreams * (1 - 1 / self.classes))

    @property
    def scale(self) -> float:
        """Integers in one unit."""
        return LEVELS * math.sqrt(self.length) / self.clip

    @property
    def l2(self) -> int:
        """The sensitivity: the largest norm of a rounded stack.

        Source: Kairouz, Liu, Steinke 2021, Proposition 22 (conditional rounding).
        """
        # Rounding moves each of d coordinates by less than 1, so the norm grows by at most
        # sqrt(d). A random rounding does better with a probability of at least 1 - beta; `integers`
        # draws again until the norm is within the smaller bound.
        c, d = self.clip * self.scale, self.length
        by_chance = math.sqrt(2 * math.log(1 / _BETA)) * (c + math.sqrt(d) / 2)
        return math.ceil(math.sqrt(min((c + math.sqrt(d)) ** 2, c**2 + d / 4 + by_chance)))

    def integers(
        self, values: NDArray[np.float64], rotation: bytes, key: bytes
    ) -> NDArray[np.int64]:
        """Return one client's stack of labels, clipped, rotated and rounded.

        Args:
            values: float64, shape (B * classes,).
            rotation: 32 public bytes, the same for all clients of a sum.
            key: 32 secret bytes that key the rounding.

        Returns:
            int64, shape (length,).

        Guarantee:
            The norm of the result is at most ``l2``, whatever ``values`` are.
        """
        finite = values if np.isfinite(values).all() else np.zeros_like(values)
        with np.errstate(over="ignore"):  # an infinite norm scales to zero
            norm = float(np.linalg.norm(finite))
        kept = finite * min(1.0, (1 - 1e-9) * self.clip / max(norm, 1e-300))
        padded = np.zeros(self.length)
        padded[: kept.size] = kept
        rotated = _hadamard(padded * _signs(rotation, self.length)) * self.scale
        for attempt in range(_ATTEMPTS):
            stream = keystream(hkdf(key, "rounding", bytes([attempt])), 8 * self.length)
            uniform = (stream.view("<u8") >> np.uint64(11)) * 2.0**-53
            rounded = np.floor(rotated + uniform).astype(np.int64)
            if int((rounded**2).sum()) <= self.l2**2:
                return rounded
        # Truncation towards zero adds nothing to the norm.
        return np.trunc(rotated).astype(np.int64)

    def values(self, sums: NDArray[np.float64], rotation: bytes) -> NDArray[np.float64]:
        """Return a sum without scale and rotation, float64, shape (B * classes,)."""
        turned = _hadamard(sums / self.scale) * _signs(rotation, self.length)
        return turned[: self.dreams * self.classes]


def rotation(request: LabelRequest) -> bytes:
    """Return the public seed of a request's rotation: the digest of its bytes."""
    if request.version != VERSION:
        raise ValueError("a request of another version")
    return digest(encode(request))


def _signs(seed: bytes, length: int) -> NDArray[np.float64]:
    bits = np.unpackbits(keystream(seed, -(-length // 8)))[:length]
    return np.asarray(1.0 - 2.0 * bits, np.float64)


def _hadamard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the orthonormal Walsh-Hadamard transform of a power of two of values.

    It is its own inverse.
    """
    result, half = values.copy(), 1
    while half < len(result):
        pairs = result.reshape(-1, 2, half)
        result = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).ravel()
        half *= 2
    return np.asarray(result / math.sqrt(len(result)), np.float64)
