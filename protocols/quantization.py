"""Clip, unbiased stochastic rounding to q bits, decoding of a sum, and the clip rule (SPEC 7)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError
from protocols.params import MAX_INPUT
from protocols.primitives.keys import hkdf
from protocols.primitives.prg import keystream

# SPEC 7.4. The first clip of a kind of section, and the range that clients accept by default.
CLIP_START = 1.0
CLIP_MIN = 2.0**-20
CLIP_MAX = 2.0**20
# A clip may at most double or halve from one sum to the next, so one unusual mean moves it little.
CLIP_MAX_RATIO = 2.0
# Half-width of the clipped range, in standard deviations of one of n uncorrelated inputs. For a
# normal distribution two of them leave about 5 % of the entries to be clipped.
CLIP_DEVIATIONS = 2.0

_BLOCK = 1 << 14  # values encoded at once: their doubles stay in the cache


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Maps [-clip, clip] to the integers 0..levels and sums of them back (SPEC 7.1, 7.2).

    Args:
        levels: L, the largest code; 1..2^24. With L = 2^q - 1 a code takes q bits.
        clip: c > 0, finite, in units of the input; the same public number for all clients.

    Raises:
        ConfigError: a parameter is out of range.
    """

    levels: int
    clip: float

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MAX_INPUT:
            raise ConfigError(f"quantizer levels must be 1..{MAX_INPUT}, not {self.levels}")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigError(f"clip must be finite and above 0, not {self.clip}")

    @property
    def resolution(self) -> float:
        """Return the distance 2c / L between neighbouring levels, in units of the input."""
        return 2 * self.clip / self.levels

    def encode(
        self, values: NDArray[np.floating], *, seed: bytes, step: int, section: str
    ) -> NDArray[np.uint32]:
        """Clip and round a vector, unbiased for every value inside the clip.

        Args:
            values: any float dtype and shape; flattened in C order. `repairs` counts those that
                are not finite.
            seed: 32 secret bytes of this client. A public seed would reveal the rounding, and with
                it more of the input than the code says.
            step: protocol step; with ``section`` it selects the rounding stream (SPEC 7.3).
            section: name of the section.

        Returns:
            uint32, shape (values.size,), in 0..levels.

        Guarantees:
            Never fails because of a value: a NaN counts as 0 and an infinity as the clip, since a
            refusal would tell the server something of the input (SPEC 7.1).
            Depends on the arguments only, so results do not depend on scheduling.
            |E[decoded] - clip(value)| <= 2**-32 * resolution, and |decoded - clip(value)| is
            below the resolution.
        """
        flat = np.asarray(values).ravel()
        words = _rounding_words(seed, step, section, flat.size)
        codes = np.empty(flat.size, dtype=np.uint32)
        for start in range(0, flat.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            codes[block] = self._rounded(flat[block].astype(np.float64), words[block])
        return codes

    def _rounded(
        self, values: NDArray[np.float64], words: NDArray[np.uint32]
    ) -> NDArray[np.float64]:
        """Return the codes of one block; `values` is overwritten."""
        np.clip(values, -self.clip, self.clip, out=values)
        np.copyto(values, 0.0, where=np.isnan(values))
        values += self.clip
        values /= self.resolution
        values += words * 2.0**-32
        np.floor(values, out=values)
        # x = c gives L + r, whose floor can reach L + 1 only through rounding of the doubles.
        return np.minimum(values, self.levels, out=values)

    def decode_sum(self, total: NDArray[np.integer], count: int) -> NDArray[np.float64]:
        """Return the real sum of ``count`` clipped inputs from the integer sum of their codes.

        Args:
            total: integer sums, each in 0..count * levels.
            count: number of summed clients.

        Returns:
            float64, the shape of ``total``.

        Guarantees:
            |result - sum of clipped inputs| < count * resolution always; its error is zero-mean
            with variance at most count * resolution**2 / 4 a coordinate (SPEC 7.2).
        """
        return np.asarray(total, dtype=np.float64) * self.resolution - count * self.clip


def repairs(values: NDArray[np.floating]) -> int:
    """Return how many numbers `Quantizer.encode` replaces: NaN and infinities.

    The count depends on private data, so it must not leave the client.
    """
    return int(np.size(values) - np.count_nonzero(np.isfinite(values)))


def _rounding_words(seed: bytes, step: int, section: str, length: int) -> NDArray[np.uint32]:
    """Return the words w of the rounding stream, r = w * 2**-32 (SPEC 7.3)."""
    key = hkdf(seed, "rounding", step.to_bytes(8, "big"), section.encode())
    return keystream(key, 4 * length).view("<u4")


def next_clip(
    quantizer: Quantizer,
    mean: NDArray[np.float64],
    count: int,
    *,
    deviations: float = CLIP_DEVIATIONS,
) -> float:
    """Return the clip of the next step from the decoded mean of this one (SPEC 7.4).

    For uncorrelated inputs one client's spread is sqrt(count) times the spread of the mean, once
    the variance that rounding can add (at most resolution^2 / 4 a client) is taken off. With one
    bit a saturated input looks like a rounded one, so the rule sees only what clients have in
    common. It uses public values only: the server has learned the sum anyway.

    Args:
        quantizer: of the step that was decoded.
        mean: decoded sum divided by ``count``.
        count: number of summed clients.
        deviations: half-width of the clip, in standard deviations of one client's input.

    Returns:
        A clip in [CLIP_MIN, CLIP_MAX], within a factor of CLIP_MAX_RATIO of the last one.
    """
    rounding_variance = quantizer.resolution**2 / (4 * count)
    signal = math.sqrt(max(float(np.square(mean).mean()) - rounding_variance, 0.0))
    wanted = deviations * math.sqrt(count) * signal
    low, high = quantizer.clip / CLIP_MAX_RATIO, quantizer.clip * CLIP_MAX_RATIO
    return min(max(wanted, low, CLIP_MIN), high, CLIP_MAX)
