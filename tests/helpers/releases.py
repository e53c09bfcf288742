"""Releases for the tests of accounting."""

from codream_secure.privacy.accounting import Release
from codream_secure.privacy.mechanisms import SkellamSum
from codream_secure.privacy.noise_search import least_noise

DELTA = 1e-5


def skellam(l2, l1, variance, steps=1):
    mechanism = SkellamSum(l2, l1, variance)
    return Release(name="s", unit="example", adjacency="a", mechanism=mechanism, steps=steps)


def skellam_variance(epsilon, l2, l1):
    return l2**2 * least_noise(epsilon, DELTA, lambda z: SkellamSum(l2, l1, z**2 * l2**2)) ** 2
