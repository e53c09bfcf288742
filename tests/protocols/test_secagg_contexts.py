"""Each thing a context or a key is bound to, changed alone, changes it (SPEC 3.2, 3.3)."""

import pytest
from secagg_helpers import make_params

from protocols import context
from protocols.client import _bundle_associated, _bundle_key, share_points
from protocols.keys import KeyPair
from protocols.masking import mask_key_pair, pair_mask_key, self_mask_key
from protocols.params import Section

PARAMS = make_params(4)
OFFLINE = [
    {"session": b"s" * 32},
    {"step": 8},
    {"threshold": 4},
    {"roster": (10, 13, 16, 20)},
]
SECTION = {"name": "g", "length": 5, "bits": 4, "clip": 1.0}
ONLINE = [
    {"step": 8},
    {"kind": "labels"},
    {"broadcast_digest": b"e" * 32},
    *(
        {"sections": (Section(**{**SECTION, **change}),)}
        for change in ({"name": "h"}, {"length": 6}, {"bits": 5}, {"clip": 2.0})
    ),
    {"sections": (Section(**SECTION), Section(**{**SECTION, "name": "h"}))},
]
KEYS = [(10, b"c" * 32, b"m" * 32), (13, b"d" * 32, b"n" * 32)]


@pytest.mark.parametrize("change", OFFLINE)
def test_offline_context_binds(change):
    assert context.offline(make_params(4, **change)) != context.offline(PARAMS)


@pytest.mark.parametrize("change", ONLINE)
def test_online_context_binds(change):
    one, other = (context.online(b"o", p, b"\x0f") for p in (PARAMS, make_params(4, **change)))
    assert one != other


def test_what_is_not_known_offline_is_not_in_the_offline_context():
    for change in ({"kind": "labels"}, {"broadcast_digest": b"e" * 32}):
        assert context.offline(make_params(4, **change)) == context.offline(PARAMS)


def test_online_context_binds_the_active_set_and_all_before_it():
    values = {
        context.online(off1, PARAMS, active) for off1 in (b"o", b"p") for active in (b"\7", b"\x0f")
    }
    assert len(values) == 4


def test_advertised_context_binds_every_key_and_its_owner():
    variants = [
        KEYS,
        KEYS[:1],
        [(11, *KEYS[0][1:]), KEYS[1]],
        [(10, b"x" * 32, b"m" * 32), KEYS[1]],
        [(10, b"c" * 32, b"x" * 32), KEYS[1]],
        [(10, b"m" * 32, b"c" * 32), KEYS[1]],
    ]
    values = {context.advertised(off0, v) for off0 in (b"o", b"p") for v in variants}
    assert len(values) == 2 * len(variants)


def test_bundle_keys_and_associated_data_bind_step_direction_and_context():
    cases = [
        (off1, step, sender, recipient)
        for off1 in (b"o" * 32, b"p" * 32)
        for step in (7, 8)
        for sender, recipient in ((10, 13), (13, 10), (10, 16), (16, 13))
    ]
    assert len({_bundle_key(b"s" * 32, *case) for case in cases}) == len(cases)
    assert len({_bundle_associated(*case) for case in cases}) == len(cases)


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
    assert len({mask_key_pair(b"s", u, on).public for u in (1, 2) for on in (b"o", b"p")}) == 4


def test_share_points_are_roster_index_plus_one():
    assert share_points(PARAMS) == {10: 1, 13: 2, 16: 3, 19: 4}
