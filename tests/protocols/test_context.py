"""Each thing a context or a key is bound to, changed alone, changes it (SPEC 3.2, 3.3)."""

from dataclasses import replace

import pytest
from secagg_helpers import make_params

from protocols import context
from protocols.client.bundles import bundle_associated, bundle_key
from protocols.graph import share_points
from protocols.masking import mask_key_pair, pair_mask_key, self_mask_key
from protocols.params import Section
from protocols.primitives.keys import KeyPair

PARAMS = make_params(4)
OFFLINE = [
    {"session": b"s" * 32},
    {"batch": 8},
    {"steps": 2},
    {"threshold": 4},
    {"roster": (10, 13, 16, 20)},
]
SECTION = {"name": "g", "length": 5, "maximum": 15, "clip": 1.0}
ONLINE = [
    {"step": 8},
    {"kind": "labels"},
    {"broadcast_digest": b"e" * 32},
    *(
        {"sections": (Section(**{**SECTION, **change}),)}
        for change in ({"name": "h"}, {"length": 6}, {"maximum": 14}, {"clip": 2.0})
    ),
    {"sections": (Section(**SECTION), Section(**{**SECTION, "name": "h"}))},
]
SENT = [(10, b"c" * 32), (13, b"d" * 32)]


@pytest.mark.parametrize("change", OFFLINE)
def test_offline_context_binds(change):
    assert context.offline(replace(PARAMS.batch, **change)) != context.offline(PARAMS.batch)


@pytest.mark.parametrize("change", ONLINE)
def test_online_context_binds(change):
    tasks = PARAMS.task, make_params(4, **change).task
    one, other = (context.online(b"o", 0, task, 4, b"\x0f") for task in tasks)
    assert one != other


def test_what_is_not_known_offline_is_not_in_the_offline_context():
    for change in ({"kind": "labels"}, {"broadcast_digest": b"e" * 32}):
        assert context.offline(make_params(4, **change).batch) == context.offline(PARAMS.batch)


def test_online_context_binds_the_key_step_the_active_set_the_lost_pairs_and_all_before_it():
    values = {
        context.online(off1, key, PARAMS.task, n, active, lost=lost)
        for off1 in (b"o", b"p")
        for key in (0, 1)
        for n in (4, 9)
        for active in (b"\7", b"\x0f")
        for lost in ((), ((0, 1),), ((0, 1), (1, 2)))
    }
    assert len(values) == 48


def test_advertised_context_binds_every_advertisement_and_its_owner():
    variants = [
        SENT,
        SENT[:1],
        [(11, SENT[0][1]), SENT[1]],
        [(10, b"x" * 32), SENT[1]],
        [(10, b"c" * 31), SENT[1]],
        [(10, SENT[1][1]), (13, SENT[0][1])],
    ]
    values = {context.advertised(off0, v) for off0 in (b"o", b"p") for v in variants}
    assert len(values) == 2 * len(variants)


def testbundle_keys_and_associated_data_bind_direction_and_context():
    cases = [
        (off1, sender, recipient)
        for off1 in (b"o" * 32, b"p" * 32)
        for sender, recipient in ((10, 13), (13, 10), (10, 16), (16, 13))
    ]
    assert len({bundle_key(b"s" * 32, *case) for case in cases}) == len(cases)
    assert len({bundle_associated(*case) for case in cases}) == len(cases)


def test_mask_keys_bind_the_clients_and_the_context():
    own, peer = (KeyPair.from_private_bytes(seed * 32) for seed in (b"a", b"b"))
    pairs = {
        pair_mask_key(own, u, v, peer.public, on)
        for on in (b"o", b"p")
        for u, v in ((1, 2), (1, 3), (2, 3))
    }
    assert len(pairs) == 6
    assert pair_mask_key(peer, 2, 1, own.public, b"o") == pair_mask_key(
        own, 1, 2, peer.public, b"o"
    )
    assert len({self_mask_key(b"s", u, on) for u in (1, 2) for on in (b"o", b"p")}) == 4
    pairs = {
        mask_key_pair(b"s", u, key, on).public
        for u in (1, 2)
        for key in (0, 1)
        for on in (b"o", b"p")
    }
    assert len(pairs) == 8


def test_share_points_are_roster_index_plus_one():
    assert share_points(PARAMS.roster) == {10: 1, 13: 2, 16: 3, 19: 4}
