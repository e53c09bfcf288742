"""What remains of cohorts that differ by one client (D1): its gradient, from the clients' sums.

A server asks all clients about some dreams, and then all but one about the same dreams or similar
ones. The difference is the answer of that client, up to rounding and to what others' answers
changed. Rules on cohorts limit how often that happens. Noise alone limits how well it works.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from codream_secure.aggregation.requests import DreamRequest
from codream_secure.dreaming.group import synthesis_settings
from codream_secure.dreaming.sources import PixelDreams
from codream_secure.dreaming.synthesis import Clips, DreamSynthesis
from codream_secure.dreaming.teacher import dream_contribution
from codream_secure.federation.client import Client
from codream_secure.federation.simulation import Simulation
from protocols.quantization import Quantizer, next_clip

BITS, DISTANCES, SUMS = (4, 12), (0.0, 4.0, 8.0), (1, 16)
MOST_DREAMS = 16
_NEVER = 1 << 20  # numbers of steps that no run reaches: every answer is rounded anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How well a client's gradient is known.

    Attributes:
        bits: of a number in an answer.
        distance: root mean square distance of the dreams of the later sums, in pixels of 0 to 255.
        sums: how many sums without the client were averaged.
        correlation: between what the server computes and the client's gradient.
    """

    bits: int
    distance: float
    sums: int
    correlation: float


def dream_request_of(simulation: Simulation) -> DreamRequest:
    """Return a request for the gradient at the last dreams of a finished run."""
    everybody = simulation.federation
    start = everybody.scale.from_pixels(simulation.dreams[-1].pixels)
    synthesis = DreamSynthesis(
        PixelDreams(start, everybody.scale, optimizer="adam", lr=0.1),
        everybody.scale,
        synthesis_settings(simulation.config, everybody.spec, 0),
        clips=Clips(),
        noise=torch.Generator().manual_seed(0),
        position=(1, 0),
    )
    return synthesis.dream_request()


def audit_differences(simulation: Simulation) -> list[Difference]:
    """Attack the first client of a finished run, by sums over sets with it and without it.

    Args:
        simulation: it has ended; its clients answer with their last models, at up to 16 of its
            last dreams.
    """
    attack = _Attack(simulation)
    ways = itertools.product(BITS, DISTANCES, SUMS)
    return [
        Difference(bits=bits, distance=far, sums=sums, correlation=attack.found(bits, far, sums))
        for bits, far, sums in ways
    ]


class _Attack:
    """The answers of all clients, each at dreams that the server names."""

    def __init__(self, simulation: Simulation) -> None:
        self._scale = simulation.federation.scale
        self._clients = [one.client for _, one in sorted(simulation.federation.members.items())]
        whole = dream_request_of(simulation)
        shape = (min(MOST_DREAMS, whole.shape[0]), *whole.shape[1:])
        dreams = whole.dreams[: math.prod(shape)]
        self._request = msgspec.structs.replace(whole, shape=shape, dreams=dreams)
        self._middle = np.frombuffer(self._request.dreams, np.uint8).astype(float)
        self._step, self._draw = _NEVER, np.random.default_rng(0)
        real = [self._real(client) for client in self._clients]
        self._clip = _settled(np.mean(real, axis=0), len(real))
        self._gradient = np.clip(real[0], -self._clip, self._clip)

    def found(self, bits: int, distance: float, sums: int) -> float:
        """Return how well the first client's gradient is known by sums without it."""
        others = self._clients[1:]
        everybody = self._sum(self._clients, self._middle, bits)
        way = [self._draw.normal(0, distance, self._middle.size) for _ in range(-(-sums // 2))]
        moves = [sign * one for one in way for sign in (1, -1)][:sums]
        without = [self._sum(others, self._middle + move, bits) for move in moves]
        shown = everybody - np.mean(without, axis=0)
        return round(float(np.corrcoef(shown, self._gradient)[0, 1]), 4)

    def _sum(
        self, clients: Sequence[Client], pixels: NDArray[np.float64], bits: int
    ) -> NDArray[np.float64]:
        """Return the decoded sum of answers to one request: what the server learns."""
        dreams = np.clip(np.round(pixels), 0, 255).astype(np.uint8).tobytes()
        asked = msgspec.structs.replace(self._request, dreams=dreams, bits=bits, clip=self._clip)
        self._step += 1
        total = sum(
            client.compute(asked, b"", self._step)["gradient"].astype(np.int64)
            for client in clients
        )
        quantizer = Quantizer((1 << bits) - 1, self._clip)
        return quantizer.decode_sum(np.asarray(total), len(clients))

    def _real(self, client: Client) -> NDArray[np.float64]:
        values = dream_contribution(client.teacher, self._scale, self._request)["gradient"]
        return values.astype(np.float64)


def _settled(mean: NDArray[np.float64], count: int) -> float:
    """Return the clip that the public rule comes to at these dreams (SPEC 7.4)."""
    clip = 1.0
    for _ in range(40):
        clip = next_clip(Quantizer((1 << BITS[-1]) - 1, clip), mean, count)
    return clip
