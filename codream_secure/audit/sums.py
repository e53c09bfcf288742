"""Mechanism audit: neighbouring inputs pass encoding, masks, sum and decoding many times.

Every coordinate of a masked sum is one trial, because noise is drawn for each coordinate. In this
audit the unit changes each coordinate of its client by the whole sensitivity.
"""

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from codream_secure.aggregation.requests import NoiseKind
from codream_secure.audit.bounds import family_epsilon
from codream_secure.privacy.accounting import Release, privacy_cost
from codream_secure.privacy.mechanisms import integer_mechanism
from codream_secure.privacy.noise_search import share_variance
from codream_secure.privacy.noisy_sum import NoisySum
from protocols.driver import run_aggregation
from protocols.params import AggregationParams, Section
from protocols.phases import DropSchedule, Phase

DELTA = 1e-5
_LENGTH = 1 << 12
_L2 = 16
_BIAS = 5  # standard errors

Codes = Callable[[NoisySum, NDArray[np.int64], bytes, int], NDArray[np.uint32]]
Sum = Callable[[dict[int, NDArray[np.uint32]], NoisySum, int, int], NDArray[np.uint32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SumAudit:
    """What was found for one number of survivors.

    Attributes:
        noise: kind of noise.
        survivors: clients in the sum.
        claimed: epsilon at delta 1e-5 of one coordinate's release with all survivors' noise.
        found: the least epsilon that the trials do not exclude, at 99.9 % confidence.
        variance: measured variance divided by the claimed one.
        interval: contains ``variance`` with probability 1 - 1e-4 if the claim is true.
        bias: mean error of a sum, in standard errors.
        trials: on each side.
    """

    noise: NoiseKind
    survivors: int
    claimed: float
    found: float
    variance: float
    interval: tuple[float, float]
    bias: float
    trials: int

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the claim."""
        low, high = self.interval
        return (
            self.found <= self.claimed and low <= self.variance <= high and abs(self.bias) < _BIAS
        )


def client_codes(
    terms: NoisySum, vector: NDArray[np.int64], key: bytes, client: int
) -> NDArray[np.uint32]:
    """Return the codes of a client; tests pass faulty functions instead."""
    del client
    return terms.codes(vector, key)


def masked_sum(
    codes: dict[int, NDArray[np.uint32]], terms: NoisySum, clients: int, threshold: int
) -> NDArray[np.uint32]:
    """Return the sum of a whole masked aggregation; clients without codes drop out."""
    params = AggregationParams(
        session=secrets.token_bytes(32),
        step=0,
        roster=tuple(range(clients)),
        threshold=threshold,
        kind="audit",
        sections=(Section(name="sum", length=terms.length, maximum=terms.maximum, clip=1.0),),
        broadcast_digest=bytes(32),
    )
    silent = {c: Phase.MASKED_INPUT for c in range(clients) if c not in codes}
    inputs = {c: {"sum": values} for c, values in codes.items()}
    return run_aggregation(inputs, params, drops=DropSchedule(silent)).totals["sum"]


def audit_sums(
    noise: NoiseKind,
    *,
    epsilon: float = 1.0,
    clients: int = 5,
    threshold: int = 3,
    repeats: int = 16,
    codes: Codes = client_codes,
    total: Sum = masked_sum,
) -> list[SumAudit]:
    """Audit sums for every number of survivors from the threshold on.

    Args:
        noise: kind of noise.
        epsilon: for which the noise is sized if only the threshold of clients stay.
        clients: n.
        threshold: t.
        repeats: aggregations on each side, of 4,096 trials each.
        codes: returns a client's codes.
        total: returns the sum of codes.
    """
    # Of length 1, because each coordinate is a release of its own here.
    variance = share_variance(epsilon, DELTA, noise=noise, l2=_L2, length=1, shares=threshold)
    terms = NoisySum.of(
        length=_LENGTH,
        l2=_L2,
        variance=variance,
        largest=64 * _L2,
        clients=clients,
        noise=noise,
    )

    def decoded(vectors: dict[int, NDArray[np.int64]]) -> NDArray[np.float64]:
        keys = {c: secrets.token_bytes(32) for c in vectors}
        given = {c: codes(terms, v, keys[c], c) for c, v in vectors.items()}
        return terms.decode(total(given, terms, clients, threshold), len(vectors))

    return [
        _audit(terms, survivors, repeats, decoded) for survivors in range(threshold, clients + 1)
    ]


def _audit(
    terms: NoisySum,
    survivors: int,
    repeats: int,
    decoded: Callable[[dict[int, NDArray[np.int64]]], NDArray[np.float64]],
) -> SumAudit:
    # Vectors at both ends of the range: with a modulus that is too small they would wrap around.
    vectors = {c: np.full(terms.length, terms.cap * (1 if c % 2 else -1)) for c in range(survivors)}
    vectors[0] = np.zeros(terms.length, np.int64)
    expected = sum(vectors.values())
    changed = vectors | {0: vectors[0] + terms.l2}
    without, with_it = (
        np.concatenate([decoded(given) - expected for _ in range(repeats)])
        for given in (vectors, changed)
    )
    claimed_variance = survivors * terms.variance
    degrees = len(without) - 1
    low, high = (float(v) / degrees for v in stats.chi2.ppf([5e-5, 1 - 5e-5], degrees))
    mechanism = integer_mechanism(terms.noise, terms.l2, 1, terms.variance, survivors)
    release = Release(name="sum", unit="client", adjacency="", mechanism=mechanism)
    return SumAudit(
        noise=terms.noise,
        survivors=survivors,
        claimed=privacy_cost([release], DELTA).epsilon,
        found=family_epsilon(without, with_it, DELTA),
        variance=float(without.var(ddof=1) / claimed_variance),
        interval=(low, high),
        bias=float(without.mean() / math.sqrt(claimed_variance / len(without))),
        trials=len(without),
    )
