"""Lower bounds of epsilon that follow from experiments."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from codream_secure.privacy.accounting import privacy_cost, training

# Confidence of one audit. Of several audits together, one in hundreds raises a false alarm.
CONFIDENCE = 0.999
ONE_RUN_CONFIDENCE = 0.95


def clopper_pearson(hits: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the two-sided confidence interval of a probability (Clopper, Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def family_epsilon(
    without: NDArray[np.float64],
    with_it: NDArray[np.float64],
    delta: float,
    *,
    sampling_rate: float = 1.0,
) -> float:
    """Return the least epsilon of a sampled Gaussian mechanism that the draws do not exclude.

    It tests the trade-off between both kinds of errors as a whole, not one epsilon (Nasr et al.,
    Tight Auditing of DP Machine Learning, USENIX Security 2023): a few thousand draws come close
    to the truth.

    Args:
        without: independent draws of a statistic on data without the unit.
        with_it: draws on data with the unit, which makes them larger.
        delta: of the epsilon that is returned.
        sampling_rate: of the mechanism: the probability with which the unit takes part.
    """
    # The threshold is chosen on the first half of the draws and the bound computed on the second:
    # on the same draws the bound would not hold with the stated confidence.
    halves = [np.array_split(draws, 2) for draws in (without, with_it)]
    (choose_out, test_out), (choose_in, test_in) = halves
    pooled = np.concatenate([choose_out, choose_in])
    candidates = np.quantile(pooled, np.linspace(0.005, 0.995, 199))
    # If no noise level fits, this takes the threshold that is violated most.
    best = min(candidates, key=lambda at: _largest_noise(choose_out, choose_in, at, sampling_rate))
    noise, _ = _largest_noise(test_out, test_in, best, sampling_rate)
    if noise >= _MOST_NOISE:
        return 0.0
    return privacy_cost([training(noise, sampling_rate, 1)], delta).epsilon


# Below the least noise the privacy loss is so large that composing it fills the memory; nobody
# uses so little noise anyway.
_LEAST_NOISE, _MOST_NOISE = 0.15, 1e3


def _largest_noise(
    without: NDArray[np.float64], with_it: NDArray[np.float64], at: float, rate: float
) -> tuple[float, float]:
    """Return the largest noise multiplier that is possible with so few errors, and a slack.

    The slack is by how much the misses exceed those without any noise; if it is negative, no
    noise is possible.
    """
    _, alarms = clopper_pearson(int((without > at).sum()), len(without))
    _, misses = clopper_pearson(int((with_it <= at).sum()), len(with_it))

    def possible(noise: float) -> bool:
        threshold = noise * stats.norm.isf(alarms)
        least = (1 - rate) * (1 - alarms) + rate * stats.norm.cdf((threshold - 1) / noise)
        return bool(least <= misses)

    beyond = misses - (1 - rate) * (1 - alarms)
    if possible(_MOST_NOISE):
        return _MOST_NOISE, beyond
    low, high = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if possible(math.exp(middle)) else (low, middle)
    return math.exp(high), beyond


def one_run_epsilon(guesses: int, correct: int, canaries: int, delta: float) -> float:
    """Return a lower bound of epsilon, with 95 % confidence, from canaries of one single run.

    Args:
        guesses: canaries for which the attacker did not abstain.
        correct: guesses that were right.
        canaries: all canaries.
        delta: of the guarantee.

    Source: Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, NeurIPS 2023,
    Theorem 5.2: under (epsilon, delta)-DP the number of right guesses hardly ever exceeds that of
    coins with bias e^epsilon / (1 + e^epsilon).
    """
    low, high = 0.0, 30.0
    if _p_value(0.0, guesses, correct, canaries, delta) > 1 - ONE_RUN_CONFIDENCE:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        excluded = _p_value(middle, guesses, correct, canaries, delta) < 1 - ONE_RUN_CONFIDENCE
        low, high = (middle, high) if excluded else (low, middle)
    return low


def _p_value(epsilon: float, guesses: int, correct: int, canaries: int, delta: float) -> float:
    """Return a bound on the probability of so many right guesses if the guarantee holds."""
    q = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, q))
    alpha, total = 0.0, 0.0
    for index in range(1, correct + 1):
        total += float(stats.binom.pmf(correct - index, guesses, q))
        alpha = max(alpha, total / index)
    return min(1.0, beta + alpha * delta * 2 * canaries)
