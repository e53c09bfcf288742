"""Class means that all clients release together, once, under example-level DP.

A client sends the masked sum over its examples plus its share of integer noise; the server sees
the noisy total of all clients. From it everybody computes public images of each class: the mean
and random noise around it. Models and dreams start from them at no further privacy cost.
(A data prior for private generation as in Harder et al., DP-MERF, AISTATS 2021, in pixels.)

An example enters as one vector, in the part that belongs to its class: its pixels less their own
mean, that mean, and a constant that counts. Each vector is clipped and truncated to integers on
its own, so that one example's share of the sum is bounded exactly, whatever it contains.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.aggregation.requests import VERSION, StatisticsRequest
from codream_secure.data.spec import InputSpec
from codream_secure.privacy.accounting import ADJACENCY
from codream_secure.privacy.noisy_sum import NoisySum, noisy_terms
from codream_secure.privacy.release_plan import Released

NAME = "class means"
# Public constants, chosen on validation folds of the digits' and MNIST's training parts. Norms are
# in units of sqrt(pixels): pixels lie in [0, 1], so the norm of an image less its mean is at most
# half of that.
_CLIP = 0.3
_BRIGHTNESS = 0.25
_COUNT = 0.1
# The clip is _LEVELS * sqrt(pixels) integers long: truncation loses far less than the noise adds.
_LEVELS = 16
# The sum of a client with more than so many even shares of the examples is cut; this costs no
# privacy.
_SHARES = 4
# The count of a class is at least this part of an even share: noise may have made it vanish.
_LEAST_COUNT = 0.15
_SPREAD = 0.25  # standard deviation of the noise around a mean, in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMeanTerms:
    """The public terms of the release; a client refuses all others.

    Attributes:
        shape: (classes, C, H, W).
        sum: terms of the sum of pixels, brightness and count of each class; ``sum.l2`` bounds the
            norm of one example's vector.
    """

    shape: tuple[int, int, int, int]
    sum: NoisySum

    @classmethod
    def of(cls, spec: InputSpec, terms: NoisySum) -> "ClassMeanTerms":
        """Return the terms for images of ``spec`` whose sum has ``terms``."""
        return cls(shape=(spec.classes, spec.channels, spec.height, spec.width), sum=terms)

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


def released(spec: InputSpec, share: int) -> Released:
    """Return what the release is, for `ReleasePlan`.

    Args:
        spec: shape of an image, and the number of classes.
        share: examples of a client if they were dealt evenly; public.
    """
    pixels = spec.channels * spec.height * spec.width
    # The sensitivity: adding or removing an example adds or removes its vector, whose integers
    # have at most this norm.
    l2 = math.ceil(_LEVELS * math.sqrt(pixels))
    return Released(
        name=NAME,
        unit="example",
        adjacency=ADJACENCY,
        length=spec.classes * (pixels + 2),
        l2=l2,
        clip=_CLIP * math.sqrt(pixels),
        largest=_SHARES * share * l2,
    )


def contribution(
    images: NDArray[np.float64], labels: NDArray[np.int64], terms: ClassMeanTerms, key: bytes
) -> NDArray[np.uint32]:
    """Return one client's codes: its clipped sums, with its share of noise.

    Args:
        images: pixels in [0, 1], shape (N, C, H, W); an image with a number that is not finite
            counts as zero.
        labels: int64, shape (N,), in [0, classes).
        terms: of the release.
        key: 32 secret bytes that key the noise, used for nothing else.

    Returns:
        uint32, shape (terms.sum.length,), in 0..terms.sum.maximum.

    Guarantee:
        Adding or removing one example changes the integers before the noise by at most
        ``terms.sum.l2`` in the Euclidean norm. With `NoisySum.codes` the sum of all clients is
        private as `NoisySum.mechanism` says.
    """
    return terms.sum.codes(class_sums(images, labels, terms), key)


def class_sums(
    images: NDArray[np.float64], labels: NDArray[np.int64], terms: ClassMeanTerms
) -> NDArray[np.int64]:
    """Return one client's clipped sums without noise; arguments as for `contribution`.

    Guarantee:
        Adding or removing one example changes the integers by at most ``terms.sum.l2`` in the
        Euclidean norm. Test: tests/codream_secure/privacy/test_class_means.py.
    """
    total = np.zeros((terms.shape[0], terms.pixels + 2), np.int64)
    np.add.at(total, labels, _integers(images.reshape(-1, terms.pixels), terms))
    return total.ravel()


def _integers(pixels: NDArray[np.float64], terms: ClassMeanTerms) -> NDArray[np.int64]:
    """Return every example's vector: clipped, then truncated to integers."""
    side = math.sqrt(terms.pixels)
    with np.errstate(invalid="ignore", over="ignore"):  # set to zero below
        brightness = pixels.mean(axis=1, keepdims=True)
        count = np.full_like(brightness, _COUNT * side)
        vectors = np.hstack([pixels - brightness, _BRIGHTNESS * side * brightness, count])
        vectors[~np.isfinite(vectors).all(axis=1)] = 0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Slightly below the bound, so that floating-point errors cannot exceed it. Truncation towards
    # zero makes no coordinate larger, so that it adds nothing to the norm.
    limit = (1 - 1e-9) * terms.sum.l2
    scaled = vectors * np.minimum(terms.scale, limit / np.maximum(norms, 1e-300))
    return np.asarray(np.trunc(scaled), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class OwnClassMeans:
    """What one client needs for its part: the terms, its examples, and a key for its noise.

    Attributes:
        terms: the only terms that it answers to.
        images, labels: as for `contribution`.
        key: 32 secret bytes for this one release.
    """

    terms: ClassMeanTerms
    images: NDArray[np.float64]
    labels: NDArray[np.int64]
    key: bytes = field(repr=False)

    def agrees(self, request: StatisticsRequest) -> bool:
        """Return whether a request has exactly these terms."""
        return request == self.terms.request()

    def codes(self) -> NDArray[np.uint32]:
        """Return `contribution`; every call returns the same codes."""
        return contribution(self.images, self.labels, self.terms, self.key)

    def noise(self) -> NDArray[np.uint32]:
        """Return the codes of no examples: this client's share of noise alone."""
        return contribution(self.images[:0], self.labels[:0], self.terms, self.key)


@dataclass(frozen=True, slots=True)
class ClassMeanImages:
    """The public mean image of every class, and random images around it.

    Attributes:
        means: pixels in [0, 1], float32, shape (classes, C, H, W).
    """

    means: Tensor

    @classmethod
    def decode(
        cls, totals: NDArray[np.uint32], count: int, terms: ClassMeanTerms, share: float
    ) -> "ClassMeanImages":
        """Return the class means that a noisy sum gives; all inputs are public.

        Args:
            totals: sum of the codes, uint32, shape (terms.sum.length,).
            count: clients in the sum.
            terms: of the release.
            share: examples of a class if all classes were even; public.
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
        """Return random images and their classes; every class has the same probability.

        Args:
            count: number of images.
            draw: a generator on the CPU.

        Returns:
            pixels in [0, 1], float32, shape (count, C, H, W); int64, shape (count,).
        """
        labels = torch.randint(len(self.means), (count,), generator=draw)
        noise = torch.randn((count, *self.means.shape[1:]), generator=draw)
        return (self.means[labels] + _SPREAD * noise).clamp(0, 1), labels
