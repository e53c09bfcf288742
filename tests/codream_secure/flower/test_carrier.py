"""Flower's messages to numbered sites; a node that sends no answer costs itself alone."""

from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from codream_secure.flower.carrier import BODY, RECORD, Carrier, content_with
from codream_secure.sites import wire

REFUSED = b"\x94\xc4\x00\xc4\x00\xa1\xff\xc4\x00"  # the reason is no UTF-8


class Grid:
    """Flower's Grid; ``answers`` are, by node, a site's number or the content of its reply."""

    def __init__(self, answers):
        self.answers, self.waiting, self.asked = answers, {}, []

    def get_node_ids(self):
        return list(self.answers)

    def push_messages(self, asked):
        ids = []
        for message in asked:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            ids.append(str(len(self.asked)))
            self.waiting[ids[-1]] = node
        return ids

    def pull_messages(self, ids):
        return [self.reply(number, self.waiting.pop(number)) for number in list(ids)]

    def reply(self, number, node):
        content = self.answers[node]
        if isinstance(content, int):
            content = content_with(wire.encode(wire.Answer(str(content).encode())))
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

    def other(number, node):
        found = reply(number, node)
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
