"""The audit of sums finds nothing in right sums, and every planted fault."""

import numpy as np
import pytest

from codream_secure.audit.sums import audit_sums, client_codes, masked_sum

ZERO_KEY = bytes(32)


def halved(terms, vector, key, client):
    noise = client_codes(terms, np.zeros_like(vector), key, client).astype(np.int64) - terms.offset
    return (client_codes(terms, vector, key, client) - noise // 2).astype(np.uint32)


def missing_share(terms, vector, key, client):
    if client != 1:
        return client_codes(terms, vector, key, client)
    return (vector.clip(-terms.cap, terms.cap) + terms.offset).astype(np.uint32)


def same_noise_everywhere(terms, vector, key, client):
    """Shares that are not independent: their sum is not what the ledger composes."""
    return client_codes(terms, vector, ZERO_KEY, client)


def wrapped(codes, terms, clients, threshold):
    """A modulus that is too small for the sum."""
    return masked_sum(codes, terms, clients, threshold) % (terms.maximum + 1)


@pytest.mark.parametrize("noise", [pytest.param("skellam", marks=pytest.mark.slow), "gaussian"])
def test_right_sums_hold_for_every_number_of_survivors(noise):
    found = audit_sums(noise, repeats=4)
    assert [one.survivors for one in found] == [3, 4, 5]
    assert all(one.holds for one in found)
    assert [one.claimed for one in found] == sorted((one.claimed for one in found), reverse=True)
    assert found[0].claimed == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    "fault",
    [
        missing_share,
        *(pytest.param(f, marks=pytest.mark.slow) for f in (halved, same_noise_everywhere)),
    ],
)
def test_a_planted_fault_in_the_noise_of_sums_is_found(fault):
    assert not any(one.holds for one in audit_sums("skellam", repeats=4, codes=fault))


@pytest.mark.slow
def test_a_planted_wrapped_modulus_is_found():
    assert not any(one.holds for one in audit_sums("skellam", repeats=2, total=wrapped))


@pytest.mark.slow
def test_noise_that_is_off_is_proven_by_epsilon_too():
    def silent(terms, vector, _key, _client):
        return (vector.clip(-terms.cap, terms.cap) + terms.offset).astype(np.uint32)

    found = audit_sums("skellam", repeats=2, codes=silent)
    assert all(one.found > 10 for one in found)
