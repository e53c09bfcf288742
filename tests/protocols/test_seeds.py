"""The search for a seed among wrong shares: every set once, and not for ever."""

import itertools
import time

import pytest
from durable_run import Run as Batch
from durable_run import other

from protocols import messages
from protocols.errors import (
    CryptoError,
    RemoteProtocolError,
)
from protocols.primitives import shamir
from protocols.seeds import MAX_ATTEMPTS, Kind, SeedSlot, _subsets


def first_of(xs, threshold):
    """The sets in the order of SPEC 3.7, by trying everything."""
    seen = []
    for left_out in range(len(xs) - threshold + 1):
        for gone in itertools.combinations(xs, left_out):
            chosen = tuple(x for x in xs if x not in gone)[:threshold]
            if chosen not in seen:
                seen.append(chosen)
    return seen[:MAX_ATTEMPTS]


@pytest.mark.parametrize(("holders", "threshold"), [(4, 4), (5, 2), (7, 3), (9, 6), (11, 5)])
def test_every_set_of_shares_is_tried_once_in_the_order_of_the_specification(holders, threshold):
    xs = tuple(range(1, holders + 1))
    assert list(_subsets(xs, threshold)) == first_of(xs, threshold)


@pytest.mark.parametrize(("holders", "threshold"), [(28, 2), (60, 3), (200, 2)])
def test_a_seed_that_cannot_be_found_is_given_up_soon(holders, threshold):
    slot = SeedSlot(bytes(32), 1, 0, Kind.SELF_MASK)
    shares = {x: x.to_bytes(32, "big") for x in range(1, holders + 1)}
    began = time.process_time()
    with pytest.raises(CryptoError):
        slot.recover(shares, threshold, bytes(32))
    assert time.process_time() - began < 30  # it used to be for ever


def test_the_search_runs_once_where_nobody_is_known_to_lie(monkeypatch):
    run = Batch()
    proofs = run.upto_unmask(0)
    tried = []
    real = shamir.reconstruct

    def reconstruct(shares, threshold):
        tried.append(tuple(sorted(shares.items())))
        return real(shares, threshold)

    def all_wrong(message):
        shares = (other(message.self_shares[0]), *message.self_shares[1:])
        return messages.UnmaskShares(message.key, shares, message.key_shares)

    monkeypatch.setattr(shamir, "reconstruct", reconstruct)
    change = {u: run.resigned(all_wrong) for u in run.survivors[:4]}
    with pytest.raises(RemoteProtocolError, match="do not give the committed seed"):
        run.unmask(proofs, change)
    # Every owner once; then the first owner again, decoded (it fails), and all 21 sets of 5 of 7.
    assert len(tried) <= 7 + 1 + 1 + 21
