"""Class means that all clients release together, once, under example-level DP.

What a client sends is a masked sum over its examples plus its share of Skellam noise; the server
sees the noisy total of all. From it follow images of every class, made of noise around the mean:
they are public, and everybody may learn from them and start dreams from them at no further cost.
(A data prior for private generation as in Harder et al., DP-MERF, AISTATS 2021, in pixels.)

An example enters as one vector, in the part that belongs to its class: its pixels less their own
mean, that mean, and a constant that counts. It is clipped and truncated to integers on its own,
so that one example's share of the sum is bounded exactly, whatever it contains.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.aggregation.requests import VERSION, NoiseKind, StatisticsRequest
from codream_secure.data.spec import InputSpec
from codream_secure.privacy.accounting import ADJACENCY, Release
from codream_secure.privacy.noisy_sum import NoisySum, noisy_terms

NAME = "class means"
# Public constants, chosen on validation folds of the digits' and MNIST's training parts. Norms are
# in units of sqrt(pixels): pixels lie in [0, 1], so one less its mean is at most 1/2 of that.
_CLIP = 0.3
_BRIGHTNESS = 0.25
_COUNT = 0.1
# Integers that the clip spans, times sqrt(pixels): what truncation loses is far below the noise.
_LEVELS = 16
# A client with more than so many even shares of the examples is cut off; that costs no privacy.
_SHARES = 4
# Classes that noise makes vanish count as this part of an even share.
_LEAST_COUNT = 0.15
_SPREAD = 0.25  # standard deviation of the noise around a mean, in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsTerms:
    """The public terms of the release; clients refuse any other.

    Attributes:
        shape: (classes, C, H, W).
        sum: of pixels, brightness and count a class; ``l2`` bounds the norm of an example's vector.
    """

    shape: tuple[int, int, int, int]
    sum: NoisySum

    @classmethod
    def of(
        cls,
        spec: InputSpec,
        *,
        share: int,
        clients: int,
        variance: int,
        noise: NoiseKind = "skellam",
    ) -> "StatisticsTerms":
        """Return the terms for images of ``spec``.

        Args:
            spec: shape of an image, and the number of classes.
            share: examples of a client if they were dealt evenly; public.
            clients: how many; the sum of all must fit 32 bits.
            variance: of a share of noise.
            noise: of which kind.
        """
        l2 = sensitivity(spec)
        return cls(
            shape=(spec.classes, spec.channels, spec.height, spec.width),
            sum=NoisySum.of(
                length=length(spec),
                l2=l2,
                variance=variance,
                largest=_SHARES * share * l2,
                clients=clients,
                noise=noise,
            ),
        )

    @property
    def pixels(self) -> int:
        """Numbers in an image."""
        return math.prod(self.shape[1:])

    def request(self) -> StatisticsRequest:
        """Return the broadcast that asks for the release."""
        return StatisticsRequest(VERSION, self.shape, noisy_terms(self.sum))

    @property
    def scale(self) -> float:
        """Integers in one unit of a pixel."""
        return self.sum.l2 / (_CLIP * math.sqrt(self.pixels))


def sensitivity(spec: InputSpec) -> int:
    """Return the Euclidean norm that an example's integer vector has at most."""
    return math.ceil(_LEVELS * math.sqrt(spec.channels * spec.height * spec.width))


def length(spec: InputSpec) -> int:
    """Return the coordinates of the sum: pixels, brightness and count, a class."""
    return spec.classes * (spec.channels * spec.height * spec.width + 2)


def release(terms: StatisticsTerms, shares: int, *, attempts: int = 1) -> Release:
    """Return the ledger's event.

    Args:
        terms: of the release.
        shares: of noise that were there and that nobody but their honest owners knows.
        attempts: aborted ones included.
    """
    return Release(
        name=NAME,
        unit="example",
        adjacency=ADJACENCY,
        mechanism=terms.sum.mechanism(shares),
        steps=attempts,
    )


def contribution(
    images: NDArray[np.float64], labels: NDArray[np.int64], terms: StatisticsTerms, key: bytes
) -> NDArray[np.uint32]:
    """Return one client's codes: its clipped sums, with its share of noise.

    Args:
        images: pixels in [0, 1], shape (N, C, H, W); one with a number that is not finite counts
            as nothing.
        labels: int64, shape (N,), in [0, classes).
        terms: of the release.
        key: 32 secret bytes that key the noise, used for nothing else.

    Returns:
        uint32, shape (terms.sum.length,), in 0..terms.sum.maximum.

    Guarantee:
        Adding or removing one example changes the integers before the noise by at most
        ``terms.sum.l2`` in the Euclidean norm. With `NoisySum.codes` the sum of all clients is
        private as `release` says.
    """
    total = np.zeros((terms.shape[0], terms.pixels + 2), np.int64)
    np.add.at(total, labels, _integers(images.reshape(-1, terms.pixels), terms))
    return terms.sum.codes(total.ravel(), key)


def _integers(pixels: NDArray[np.float64], terms: StatisticsTerms) -> NDArray[np.int64]:
    """Return every example's vector: clipped, then truncated towards zero, which adds no norm."""
    side = math.sqrt(terms.pixels)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is put out below
        brightness = pixels.mean(axis=1, keepdims=True)
        count = np.full_like(brightness, _COUNT * side)
        vectors = np.hstack([pixels - brightness, _BRIGHTNESS * side * brightness, count])
        vectors[~np.isfinite(vectors).all(axis=1)] = 0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A hair below the bound, so that rounding in floating point cannot step over it.
    limit = (1 - 1e-9) * terms.sum.l2
    scaled = vectors * np.minimum(terms.scale, limit / np.maximum(norms, 1e-300))
    return np.asarray(np.trunc(scaled), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class OwnStatistics:
    """What one client needs to answer: the terms it knows, its examples, and a key for its noise.

    Attributes:
        terms: the only ones it answers to.
        images, labels: as for `contribution`.
        key: 32 secret bytes for this one release.
    """

    terms: StatisticsTerms
    images: NDArray[np.float64]
    labels: NDArray[np.int64]
    key: bytes = field(repr=False)

    def agrees(self, request: StatisticsRequest) -> bool:
        """Tell whether a request has exactly these terms."""
        return request == self.terms.request()

    def codes(self) -> NDArray[np.uint32]:
        """Return `contribution`; the same whenever it is asked for."""
        return contribution(self.images, self.labels, self.terms, self.key)


@dataclass(frozen=True, slots=True)
class ClassImages:
    """Public images of every class: a mean, and noise around it.

    Attributes:
        means: pixels in [0, 1], float32, shape (classes, C, H, W).
    """

    means: Tensor

    @classmethod
    def decode(
        cls, totals: NDArray[np.uint32], count: int, terms: StatisticsTerms, share: float
    ) -> "ClassImages":
        """Return the images that a noisy sum gives; only what is public goes in.

        Args:
            totals: sum of the codes, shape (terms.sum.length,).
            count: clients in the sum.
            terms: of the release.
            share: examples of a class if all were even; public.
        """
        sums = terms.sum.decode(totals, count).reshape(terms.shape[0], -1)
        side = math.sqrt(terms.pixels)
        least = _LEAST_COUNT * share * _COUNT * side * terms.scale
        weight = np.maximum(sums[:, -1:], least) / (_COUNT * side)
        shapes = sums[:, : terms.pixels] / weight
        shapes -= shapes.mean(axis=1, keepdims=True)
        brightness = (sums[:, -2:-1] / weight / (_BRIGHTNESS * side)).clip(0, 1)
        means = (shapes + brightness).clip(0, 1).reshape(terms.shape)
        return cls(torch.from_numpy(means.astype(np.float32)))

    def draw(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images and their classes, evenly drawn.

        Args:
            count: how many.
            draw: a generator on the CPU.

        Returns:
            pixels in [0, 1], float32, shape (count, C, H, W); int64, shape (count,).
        """
        labels = torch.randint(len(self.means), (count,), generator=draw)
        noise = torch.randn((count, *self.means.shape[1:]), generator=draw)
        return (self.means[labels] + _SPREAD * noise).clamp(0, 1), labels
