"""Flower's messages to numbered sites; a node that sends no answer costs itself alone."""

from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from codream_secure.flower.carrier import BODY, RECORD, Carrier, body_of, content_with
from codream_secure.sites import wire
from codream_secure.sites.presence import Doorkeeper, channel_of, proof_of
from codream_secure.sites.session import SiteSettings
from protocols.primitives.keys import SigningKey

REFUSED = b"\x94\xc4\x00\xc4\x00\xa1\xff\xc4\x00"  # the reason is no UTF-8


def claim(site, proof=b""):
    """Return the content of the answer of a node that says it is a site."""
    said = wire.encode(wire.Claim(wire.VERSION, site, proof))
    return content_with(wire.encode(wire.Answer(said)))


class Grid:
    """Flower's Grid; ``answers`` are, by node, a site's number or the content of its reply.

    ``silent`` nodes never answer.
    """

    def __init__(self, answers):
        self.answers, self.waiting, self.asked, self.silent = answers, {}, [], set()

    def get_node_ids(self):
        return list(self.answers)

    def push_messages(self, asked):
        ids = []
        for message in asked:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            ids.append(str(len(self.asked)))
            self.waiting[ids[-1]] = node, body_of(message.content)
        return ids

    def pull_messages(self, ids):
        there = [n for n in ids if self.waiting[n][0] not in self.silent]
        return [self.reply(number, *self.waiting.pop(number)) for number in there]

    def reply(self, number, node, body):
        content = self.answers[node]
        if callable(content):
            content = content(wire.decode(body))
        if isinstance(content, int):
            content = claim(content)
        metadata = SimpleNamespace(src_node_id=node, reply_to_message_id=number)
        return SimpleNamespace(has_content=lambda: True, content=content, metadata=metadata)


@pytest.fixture
def carrier(monkeypatch):
    monkeypatch.setattr("codream_secure.flower.carrier._PAUSE", 0.0)
    monkeypatch.setattr("codream_secure.flower.carrier._size", lambda _: 0)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return lambda grid: Carrier(grid, 1.0)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({RECORD: ConfigRecord()}),
        RecordDict({RECORD: ArrayRecord({BODY: Array("float32", (0,), "x", b"")})}),
        content_with("x"),
        content_with(2**62),
        content_with(1.5),
        content_with([b"1"]),
        content_with(b"\xc1"),
        content_with(REFUSED),
        content_with(wire.encode(wire.Answer(b"one"))),
    ],
    ids=range(10),
)
def test_a_node_that_sends_no_answer_is_passed_over(carrier, content, caplog):
    caplog.set_level("WARNING", "flwr")
    assert carrier(Grid({7: content, 8: 1})).sites() == {8: 1}
    assert "node 7" in caplog.text


def test_an_answer_of_a_node_that_was_not_asked_is_passed_over(carrier):
    grid = Grid({7: 0, 8: 1})
    there = carrier(grid)
    there.sites()
    reply = grid.reply

    def other(number, node, body):
        found = reply(number, node, body)
        found.metadata.src_node_id = 8
        return found

    grid.reply = other
    assert there({0: b"x"}) == {}


def test_a_site_is_the_first_node_that_says_so_while_it_is_connected(carrier, caplog):
    caplog.set_level("WARNING", "flwr")
    grid = Grid({11: 0, 12: 1})
    there = carrier(grid)
    assert there.sites() == {11: 0, 12: 1}
    grid.answers[99] = 1
    assert there.sites() == {11: 0, 12: 1}
    assert "node 99 says that it is site 1, as another does" in caplog.text
    grid.asked.clear()
    assert set(there({1: b"x"})) == {1}
    assert grid.asked == [12]
    del grid.answers[12]
    assert there.sites() == {11: 0, 99: 1}


KEYS = [SigningKey.from_private_bytes(bytes([n]) * 32) for n in range(2)]
DOOR = Doorkeeper(b"s" * 32, tuple(key.public for key in KEYS))


def proving(site, node, key=None):
    """Return a node's answer to `Who`, with a proof for a site."""
    identity = key or KEYS[site]

    def answer(message):
        if not isinstance(message, wire.Who):
            return content_with(b"")
        settings = SiteSettings(
            client=site, folder=None, load=None, identity=identity, roster=DOOR.identities
        )
        return claim(site, proof_of(settings, message.session, message.nonce, channel_of(node)))

    return answer


def test_a_node_without_the_key_does_not_get_a_sites_number(carrier, caplog):
    """The first node that says so used to be the site: a stranger kept the honest one out."""
    caplog.set_level("WARNING", "flwr")
    stranger = SigningKey.from_private_bytes(b"x" * 32)
    grid = Grid({99: 1, 98: proving(1, 98, stranger), 11: proving(0, 11), 12: proving(1, 12)})
    there = carrier(grid)
    there.door = DOOR
    assert there.sites() == {11: 0, 12: 1}
    assert "node 99 does not prove that it is site 1 of the roster: ignored" in caplog.text
    assert "node 98 does not prove that it is site 1" in caplog.text
    grid.asked.clear()
    there({1: wire.encode(wire.End())})
    assert grid.asked[-1] == 12


def test_a_proof_that_a_node_passes_on_is_none(carrier):
    """Node 99 asks site 1 itself, whose proof names its own node 12."""
    there = carrier(Grid({99: proving(1, 12), 11: proving(0, 11), 12: proving(1, 12)}))
    there.door = DOOR
    assert there.sites() == {11: 0, 12: 1}


def test_a_proof_is_asked_for_again_with_a_fresh_nonce(carrier):
    seen = []

    def replays(message):
        seen.append(message.nonce)
        return claim(1, b"x" * 64)

    there = carrier(Grid({99: replays, 11: proving(0, 11)}))
    there.door = DOOR
    there.sites()
    there.sites()
    assert len(set(seen)) == 2


def test_a_node_that_never_says_who_it_is_is_waited_for_once(carrier, monkeypatch):
    grid = Grid({11: 0, 99: 1})
    grid.silent.add(99)
    monkeypatch.setattr("codream_secure.flower.carrier._GREETING", 0.05)
    there, pulls = carrier(grid), []
    real = grid.pull_messages
    grid.pull_messages = lambda ids: pulls.append(set(ids)) or real(ids)
    assert there.sites() == {11: 0}
    pulls.clear()
    assert there.sites() == {11: 0}
    assert len(pulls) == 1  # one look, without waiting
    grid.silent.clear()
    assert there.sites() == {11: 0, 99: 1}  # its late answer counts
    assert grid.asked.count(99) == 1
