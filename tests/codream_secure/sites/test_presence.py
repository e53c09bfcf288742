"""Who a site is: a node without its key cannot take its place, and cannot keep it out."""

import msgspec
import numpy as np
import pytest
from machines import OPTIONS

from codream_secure.sites import wire
from codream_secure.sites.presence import Doorkeeper, channel_of, fresh_nonce, proof_of
from codream_secure.sites.session import SiteSettings
from codream_secure.sites.site import Site
from codream_secure.sites.summand import Contribution
from codream_secure.sites.sums import SumServer
from protocols.params import Section, Task
from protocols.primitives.keys import SigningKey, digest, u64

KEYS = [SigningKey.from_private_bytes(bytes([n]) * 32) for n in range(3)]
ROSTER = tuple(key.public for key in KEYS)
SESSION, NONCE, NODE = b"s" * 32, b"n" * 32, 7
DOOR = Doorkeeper(SESSION, ROSTER)
SECTIONS = (Section(name="v", length=2, maximum=3, clip=1.0),)


def settings(site, key, folder):
    return SiteSettings(
        client=site, folder=folder, load=lambda: None, identity=key, roster=ROSTER, node=NODE
    )


def proof(folder, *, key=KEYS[1], session=SESSION, nonce=NONCE, node=NODE):
    return proof_of(settings(1, key, folder), session, nonce, channel_of(node))


def test_a_site_with_its_key_is_admitted(tmp_path):
    assert DOOR.admits(1, NONCE, proof(tmp_path), channel_of(NODE))
    assert Doorkeeper(SESSION).admits(1, NONCE, b"")  # nobody knows its key: nothing is checked
    assert fresh_nonce() != fresh_nonce()


@pytest.mark.parametrize(
    "changed",
    [{"key": KEYS[2]}, {"session": b"t" * 32}, {"nonce": b"m" * 32}, {"node": 8}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_proof_of_anything_else_is_none(changed, tmp_path):
    assert not DOOR.admits(1, NONCE, proof(tmp_path, **changed), channel_of(NODE))


@pytest.mark.parametrize("site", [-1, 0, 2, 3, 2**70])
def test_a_proof_holds_for_its_own_number_alone(site, tmp_path):
    assert not DOOR.admits(site, NONCE, proof(tmp_path), channel_of(NODE))


def test_a_signature_of_an_upload_is_no_proof():
    signed = KEYS[1].sign(digest("signed", SESSION, NONCE, u64(1), channel_of(NODE)))
    assert not DOOR.admits(1, NONCE, signed, channel_of(NODE))
    assert not DOOR.admits(1, NONCE, b"", channel_of(NODE))


def test_a_run_goes_on_with_the_site_whose_number_a_stranger_took(machines):
    """The stranger's answer to the greeting used to shut site 0 out for the whole run."""
    there, forged = machines(malicious=True), []
    real = there.carry

    def carry(asked):
        messages = {site: wire.decode(data) for site, data in asked.items()}
        if forged or not isinstance(messages.get(0), wire.Hello):
            return real(asked)
        claimed = wire.Present(wire.VERSION, 0, (9, 9, 9, 9), ((), ()), bytes(64))
        forged.append(wire.encode(wire.Answer(wire.encode(claimed))))
        return {**real({site: data for site, data in asked.items() if site}), 0: forged[0]}

    there.carry = carry
    coordinator = there.coordinator({**OPTIONS, "threat_model": "malicious"})
    rounds = list(coordinator.rounds())
    assert [one.learned for one in rounds] == [4, 4]
    assert coordinator.sites.unfit == set()
    assert there.told[0] == "site 0: the answer has no proof of the site's key in the roster"


class _Ones:
    """A `Summand` that adds ones."""

    kinds = ("ones",)

    def task(self, broadcast, step, _folder):
        return Task(step=step, kind="ones", sections=SECTIONS, broadcast_digest=digest("x"))

    def content(self, broadcast):
        return broadcast

    def contribute(self, _broadcast, _folder):
        return Contribution({"v": np.ones(2, np.uint32)})


@pytest.mark.parametrize("answer", [wire.encode(wire.Joined(99, 2, bytes(64))), b"\xc1"])
def test_a_session_of_sums_greets_again_whom_a_stranger_answered_for(answer, tmp_path):
    told, nonces = [], []

    def carry(asked):
        found = {}
        for site, data in asked.items():
            message = wire.decode(data)
            if isinstance(message, wire.Begin):
                nonces.append(message.nonce)
            with Site(settings(site, KEYS[site], tmp_path / f"site-{site}"), _Ones()) as there:
                found[site] = wire.encode(there.handle(message))
        if len(nonces) == 3 and 0 in asked:
            found[0] = wire.encode(wire.Answer(answer))
        return found

    server = SumServer(
        carry, clients=3, threat_model="malicious", identities=ROSTER, tell=told.append
    )
    server.greet()
    assert server.sites.present == {1, 2}
    server.greet()
    assert server.sites.present == {0, 1, 2}
    assert len(set(nonces)) == 4  # three sites, and site 0 again: a nonce for each question
    assert told == ["site 0: the answer has no proof of the site's key in the roster"]


def test_who_answers_with_the_number_and_a_proof_for_its_own_node(tmp_path):
    with Site(settings(1, KEYS[1], tmp_path)) as there:
        answer = there.handle(wire.Who(wire.VERSION, SESSION, NONCE))
        claim = wire.decode_claim(answer.data)
        assert (claim.client, claim.version) == (1, wire.VERSION)
        assert DOOR.admits(1, NONCE, claim.proof, channel_of(NODE))
        other = there.handle(msgspec.structs.replace(wire.Who(1, SESSION, NONCE)))
    assert "install the same codream-secure" in other.refused
