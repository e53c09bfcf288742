"""Soft labels under client-level DP: they are all that a client releases.

This is the distributed discrete mechanism of Kairouz, Liu, Steinke (ICML 2021): a client clips its
stacked labels, rotates them at random, rounds them at random to a grid, adds a share of integer
noise, and masks the result. Dreams are made without asking the clients, so only labels cost
privacy.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import VERSION, LabelRequest, digest, encode
from codream_secure.config.resolved import PrivateRun, Resolved
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.privacy.accounting import CLIENTS, check_meaning
from codream_secure.privacy.forecast import Forecast, predict
from codream_secure.privacy.release_plan import Released, ReleasePlan
from protocols.primitives.keys import hkdf
from protocols.primitives.prg import keystream

NAME = "labels"
# The clip is _LEVELS * sqrt(dimension) integers long. With 16, rounding adds 0.1 % to the
# sensitivity.
_LEVELS = 16
# Conditional rounding: a draw is accepted with probability 1 - beta at least.
_BETA = math.exp(-0.5)
_ATTEMPTS = 64
# Rotated coordinates are nearly Gaussian with standard deviation `_LEVELS`; magnitudes up to so
# many standard deviations fit.
_REACH = 8


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
        return _LEVELS * math.sqrt(self.length) / self.clip

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


def label_plan(config: PrivateRun, spec: InputSpec) -> ReleasePlan:
    """Return the plan of all label sums of a run.

    Args:
        config: resolved, with ``--dp-unit client``.
        spec: shape of an image and the number of classes.

    Raises:
        UserError: the noise would drown the labels, and `--accept-low-utility` is not set.

    Guarantee:
        As `ReleasePlan`, with respect to adding or removing one client and all its data.
    """
    grid = LabelGrid(config.dream.dreams, spec.classes)
    most = config.dream.rounds * config.dream.dream_batches
    check_meaning(config.privacy.dp_delta, config.data.clients)
    _check_forecast(config, label_forecast(config, spec))
    kind = Released(
        name=NAME,
        unit="client",
        adjacency=CLIENTS,
        length=grid.length,
        l2=grid.l2,
        clip=grid.clip,
        largest=_REACH * _LEVELS,
    )
    return ReleasePlan(config, kind, most)


def label_forecast(config: PrivateRun, spec: InputSpec) -> Forecast:
    """Return the forecast for the labels of a run, under the assumption that all clients agree."""
    dream, clients = config.dream, config.data.clients
    return predict(
        "client",
        contributions=clients,
        clients=clients,
        dimensions=dream.dreams * spec.classes,
        releases=dream.rounds * dream.dream_batches,
        epsilon=config.privacy.dp_eps,
        delta=config.privacy.dp_delta,
    )


def prediction(config: Resolved, spec: InputSpec) -> str | None:
    """Return the forecast for a run's labels in words; None without client-level DP."""
    if not (isinstance(config, PrivateRun) and config.private_clients):
        return None
    return f"labels of clients that agree: {_in_words(config, label_forecast(config, spec))}"


def _in_words(config: Resolved, found: Forecast) -> str:
    releases = config.dream.rounds * config.dream.dream_batches
    needed = math.ceil(found.needed * math.sqrt(releases))
    return (
        f"predicted signal to noise {found.ratio_each:.2g} a release, and 1 takes {needed} clients"
    )


def _check_forecast(config: PrivateRun, found: Forecast) -> None:
    if found.ratio_each >= 1 or config.privacy.accept_low_utility:
        return
    raise UserError(
        f"the noise would drown the labels: {_in_words(config, found)}; ask for fewer --dreams or "
        "--rounds or more --dp-eps, or pass --accept-low-utility"
    )


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
