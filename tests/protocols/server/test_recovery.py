"""Wrong shares are decoded once for a step; whatever fails then is decoded or searched alone."""

import itertools
from types import MappingProxyType

import pytest
from durable_run import DEALER, VICTIM, Run, other
from hypothesis import given
from hypothesis import strategies as st
from secagg_helpers import fixed_entropy

from protocols import context
from protocols.errors import CryptoError, SeedLost
from protocols.graph import Graph, share_points
from protocols.messages import UnmaskShares
from protocols.params import BatchParams
from protocols.primitives import decoding, shamir
from protocols.seeds import Kind, SeedSlot
from protocols.server.offline import BatchKeys
from protocols.server.recovery import Needed, SeedRecovery

SELF = Kind.SELF_MASK


class Step:
    """Seeds of some owners, shared among n holders who all answer."""

    def __init__(self, n, threshold, owners):
        self.batch = BatchParams(
            session=bytes(32), batch=0, steps=1, roster=tuple(range(n)), threshold=threshold
        )
        self.points = share_points(self.batch.roster)
        entropy = fixed_entropy()
        self.seeds = {u: shamir.draw_element(entropy) for u in range(owners)}
        self.shares = {}
        for u, seed in self.seeds.items():
            dealt = self.slot(u).split(seed, threshold, self.points.values())
            self.shares[u] = {v: dealt[x] for v, x in self.points.items()}
        self.commitments = {u: (bytes(32), self.slot(u).commit(s)) for u, s in self.seeds.items()}

    def slot(self, owner):
        return SeedSlot(context.offline(self.batch), owner, 0, SELF)

    def lie(self, owner, holder):
        self.shares[owner][holder] = other(self.shares[owner][holder])

    def recovery(self, entropy=fixed_entropy()):  # noqa: B008 - one stream for all is meant
        graph = Graph.of(self.batch, self.batch.roster, bytes(32))
        keys = BatchKeys(bytes(32), graph, MappingProxyType({}), self.commitments)
        return SeedRecovery(self.batch, keys, 0, entropy)

    def found(self, recovery):
        needed = [Needed(u, SELF, shares) for u, shares in self.shares.items()]
        return {u: seed for (u, _), seed in recovery.find(needed).items()}

    def by_point(self, owner):
        return {self.points[v]: share for v, share in self.shares[owner].items()}


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of values of every decoding."""
    calls, real = [], decoding.errors

    def errors(values, threshold):
        calls.append(len(values))
        return real(values, threshold)

    monkeypatch.setattr(decoding, "errors", errors)
    return calls


@pytest.mark.parametrize("liars", [{29, 30}, {0, 3, 9, 20, 30, 43, 44}])
def test_wrong_responders_cost_one_decoding_where_the_search_loses_the_step(decoded, liars):
    step = Step(45, 31, owners=6)
    for owner, liar in itertools.product(step.seeds, liars):
        step.lie(owner, liar)
    recovery = step.recovery()
    assert step.found(recovery) == step.seeds
    assert recovery.wrong == liars
    assert decoded == [45]
    with pytest.raises(CryptoError):  # what was tried before: 512 sets
        step.slot(0).search(step.by_point(0), 31, step.commitments[0][1])


def test_nobody_is_decoded_if_nobody_lies(decoded):
    step = Step(10, 7, owners=10)
    recovery = step.recovery(entropy=None)
    assert step.found(recovery) == step.seeds
    assert (recovery.wrong, decoded) == (frozenset(), [])


def test_wrong_shares_of_two_seeds_cannot_cancel(decoded):
    step = Step(9, 5, owners=2)
    for owner, shift in ((0, 1), (1, -1)):
        share = int.from_bytes(step.shares[owner][0], "big")
        step.shares[owner][0] = ((share + shift) % shamir.P).to_bytes(32, "big")
    recovery = step.recovery()
    assert step.found(recovery) == step.seeds
    assert (recovery.wrong, decoded) == ({0}, [9])


def test_responders_that_each_change_another_seed_are_decoded_together(decoded):
    step = Step(45, 31, owners=6)
    for owner in step.seeds:
        step.lie(owner, 2 * owner)
    recovery = step.recovery()
    assert step.found(recovery) == step.seeds
    assert recovery.wrong == {0, 2, 4, 6, 8, 10}
    assert decoded == [45]
    alone = step.recovery(entropy=None)
    assert step.found(alone) == step.seeds
    assert len(decoded) > 2  # without a combination, one for nearly every seed


def test_who_is_wrong_for_one_seed_is_used_for_another_that_needs_it():
    step = Step(4, 3, owners=2)
    step.lie(0, 0)
    step.lie(1, 1)
    assert step.found(step.recovery()) == step.seeds


def test_a_dealer_that_lied_to_many_is_lost_alone_and_named():
    step = Step(12, 7, owners=4)
    for holder in range(6):
        step.lie(2, holder)
    with pytest.raises(SeedLost) as error:
        step.found(step.recovery())
    assert error.value.peer == 2
    del step.shares[2], step.seeds[2]
    assert step.found(step.recovery()) == step.seeds


def test_a_dealer_that_lied_and_a_liar_are_both_decoded(decoded):
    """Together they are wrong at too many places: 1, and 2 more for owner 0."""
    step = Step(11, 7, owners=4)
    for owner in step.seeds:
        step.lie(owner, 0)
    step.lie(0, 1)
    step.lie(1, 2)
    recovery = step.recovery()
    assert step.found(recovery) == step.seeds
    assert recovery.wrong >= {0}
    assert decoded[0] == 11
    assert len(decoded) <= 3  # what one owner's decoding finds is left out of the next one's


def test_three_wrong_of_ten_are_searched_for_once():
    step = Step(10, 7, owners=5)
    for owner, liar in itertools.product(step.seeds, (0, 4, 8)):
        step.lie(owner, liar)
    recovery = step.recovery()
    assert step.found(recovery) == step.seeds
    assert recovery.wrong == {0, 4, 8}


def today(step):
    """What was found before there was decoding: search, without known liars and with them."""
    liars, seeds = set(), {}
    for owner in step.seeds:
        everything = step.by_point(owner)
        trusted = {x: share for x, share in everything.items() if x not in liars}
        for shares in (trusted, everything):
            try:
                against = step.batch.threshold, step.commitments[owner][1]
                seeds[owner], wrong = step.slot(owner).search(shares, *against)
            except CryptoError:
                continue
            liars |= wrong
            break
        else:
            return None
    return seeds


@given(st.data())
def test_nothing_is_lost_that_the_search_finds(data):
    n = data.draw(st.integers(3, 9))
    step = Step(n, data.draw(st.integers(n // 2 + 1, n)), owners=data.draw(st.integers(1, 3)))
    everywhere = data.draw(st.sets(st.integers(0, n - 1), max_size=4))
    for owner in step.seeds:
        for holder in everywhere ^ data.draw(st.sets(st.integers(0, n - 1), max_size=2)):
            step.lie(owner, holder)
    entropy = data.draw(st.sampled_from([None, fixed_entropy()]))
    before = today(step)
    if before is None:
        with pytest.raises(SeedLost):
            step.found(step.recovery(entropy))
    else:
        assert step.found(step.recovery(entropy)) == before == step.seeds


# In sessions of the malicious model -----------------------------------------------------------


def first_self_share(message):
    shares = (other(message.self_shares[0]), *message.self_shares[1:])
    return UnmaskShares(message.key, shares, message.key_shares)


@pytest.mark.parametrize("kind", ["self_mask", "mask_key"])
def test_a_dealer_cannot_have_its_victim_barred(monkeypatch, kind):
    run = Run(monkeypatch, [VICTIM], kind=kind)
    silent = [DEALER] if kind == "mask_key" else []
    assert run.unmask(run.upto_unmask(0, silent)) == run.expected(0)
    assert run.server.result.wrong == {VICTIM}
    assert VICTIM in run.server.candidates
    assert run.unmask(run.upto_unmask(1)) == run.expected(1)


def test_who_changes_a_share_does_no_harm_and_its_dealer_stays():
    run = Run()
    proofs = run.upto_unmask(0)
    assert run.unmask(proofs, {VICTIM: run.resigned(first_self_share)}) == run.expected(0)
    assert run.server.candidates == tuple(run.clients)
    assert run.unmask(run.upto_unmask(1)) == run.expected(1)


def test_a_lost_seed_bars_nobody():
    run = Run()
    proofs = run.upto_unmask(0)
    with pytest.raises(SeedLost) as error:
        run.unmask(proofs, {u: run.resigned(first_self_share) for u in run.survivors[:4]})
    assert error.value.peer == min(run.clients)
    assert run.server.candidates == tuple(run.clients)
    assert run.unmask(run.upto_unmask(1)) == run.expected(1)
