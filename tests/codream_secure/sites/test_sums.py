"""Keys that are made on the way of a step, and sites that give or deal wrong shares."""

import hashlib

import msgspec
import pytest
from machines import OPTIONS

import protocols.client.step
from codream_secure.config.settings import Config
from codream_secure.federation.simulation import Simulation
from codream_secure.sites import wire
from protocols.client import offline as client_offline
from protocols.client.states import HeldShares, SelfShare


def asks(there, kind):
    return [(site, message) for site, message in there.messages if isinstance(message, kind)]


def test_the_next_keys_ride_with_a_step_and_take_no_round_trip(machines):
    there = machines()
    coordinator = there.coordinator({**OPTIONS, "key_steps": 2, "rounds": 1})
    (first,) = coordinator.rounds()
    # 4 sums under keys for 2, 2: one exchange of its own, and one that rode.
    assert len(asks(there, wire.Advertise)) == len(asks(there, wire.Share)) == 4
    assert [m.key_exchange.batch.number for _, m in asks(there, wire.Unmask) if m.key_exchange] == [
        1
    ] * 4
    assert sorted({m.batch.number for _, m in asks(there, wire.Ask)}) == [0, 1]
    # Hello, two of keys, two a sum, one to learn, and one to end.
    assert coordinator.sites.traffic.round_trips == 1 + 2 + 2 * 4 + 1 + 1
    simulation = Simulation(Config.from_options({**OPTIONS, "rounds": 1}))
    list(simulation.rounds())
    assert (first.dreams[0].pixels == simulation.dreams[0].pixels).all()


def test_no_keys_are_made_after_the_last_step(machines):
    there = machines()
    list(there.coordinator({**OPTIONS, "key_steps": 8}).rounds())
    assert not [m for _, m in asks(there, wire.Ask) if m.key_exchange]


@pytest.mark.parametrize("kind", [wire.Ask, wire.Unmask])
def test_who_misses_keys_that_ride_gets_some_in_an_exchange_of_its_own(machines, kind):
    there = machines()
    missed = []

    def fault(_number, site, message):
        if site == 1 and isinstance(message, kind) and message.key_exchange and not missed:
            missed.append(site)
            return "before"
        return None

    there.fault = fault
    list(there.coordinator({**OPTIONS, "key_steps": 4}).rounds())
    assert missed
    assert len(asks(there, wire.Advertise)) == 8
    later = [m.batch.number for s, m in asks(there, wire.Ask) if s == 1]
    assert max(later) == max(m.batch.number for _, m in asks(there, wire.Ask))


def test_nothing_is_put_off_for_a_site_that_stays_away(machines):
    there = machines()
    there.fault = lambda number, site, _: "before" if site == 1 and number > 20 else None
    rounds = list(there.coordinator({**OPTIONS, "key_steps": 1}).rounds())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    # Tried again until it has been silent three times, then only asked along the way.
    assert len([s for s, _ in asks(there, wire.Advertise) if s == 0]) <= 3


def other(share):
    return bytes([0]) + hashlib.sha256(share).digest()[1:]


def test_a_wrong_share_does_no_harm_and_the_operator_is_told(machines, monkeypatch):
    there, lied = machines(malicious=True), []
    original = protocols.client.step._shares

    def unmask(party, state, survivors):
        reply = original(party, state, survivors)
        if party.client == 2 and not lied:
            lied.append(True)
            wrong = (other(reply.self_shares[0]), *reply.self_shares[1:])
            return msgspec.structs.replace(reply, self_shares=wrong)
        return reply

    monkeypatch.setattr(protocols.client.step, "_shares", unmask)
    rounds = list(there.coordinator({**OPTIONS, "threat_model": "malicious"}).rounds())
    assert lied
    assert there.told.count("shares of sites 2 were wrong, or dealt wrong; the sum is exact") == 1
    assert [len(one.dreams) for one in rounds] == [1, 1]


def test_who_was_dealt_a_wrong_share_is_not_left_out(machines, monkeypatch):
    there = machines(malicious=True)
    original, dealt = client_offline.split_seeds, []

    def split(party, seeds, members):
        held = dict(original(party, seeds, members))
        if party.client == 3 and not dealt:
            dealt.append(True)
            first, *rest = held[0]
            wrong = SelfShare(other(first.self_mask.value))
            held[0] = (HeldShares(first.mask_key, wrong), *rest)
        return held

    monkeypatch.setattr(client_offline, "split_seeds", split)
    rounds = list(there.coordinator({**OPTIONS, "threat_model": "malicious"}).rounds())
    assert dealt
    assert there.told == ["shares of sites 0 were wrong, or dealt wrong; the sum is exact"]
    assert [len(one.dreams) for one in rounds] == [1, 1]
