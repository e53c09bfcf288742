"""What one party sends is no answer, or not its own: the other goes on, and says so in one line."""

from types import SimpleNamespace

import msgspec
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from machines import OPTIONS

from codream_secure.flower.carrier import Carrier
from codream_secure.sites import wire
from codream_secure.sites.peers import Sites
from codream_secure.sites.session import SiteSettings
from codream_secure.sites.site import SumSite
from protocols import messages

NO_TEXT = b"\xa1\xff"  # MessagePack: a string of one byte that is no UTF-8
REFUSED = b"\x94\xc4\x00\xc4\x00" + NO_TEXT + b"\xc4\x00"
BEGIN = wire.encode(wire.Begin(1, b"x", 4, 3, "semi-honest", 2)).replace(b"-honest", b"\xffhonest")


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (wire.decode, BEGIN),
        (wire.decode, b"\x91" + NO_TEXT),
        (wire.decode_answer, REFUSED),
        (wire.decode_present, b"\x95" + NO_TEXT + b"\x01\x00\x90\x90"),
        (wire.decode_joined, b"\x93" + NO_TEXT + b"\x01\x00"),
    ],
    ids=["a field", "a tag", "an answer", "Present", "Joined"],
)
def test_text_that_is_no_utf_8_is_an_error_like_others(decode, data):
    with pytest.raises(msgspec.DecodeError):
        decode(data)


def test_a_site_refuses_what_is_no_text(tmp_path):
    settings = SiteSettings(client=0, folder=tmp_path, load=lambda: None)
    with SumSite(settings, summand=None) as site:
        answer = wire.decode_answer(site.handle_bytes(BEGIN))
    assert "not a message of version" in answer.refused


# What a site says ----------------------------------------------------------------------------


def told(data):
    """Return the sites and what they told of an answer to `Who`."""
    lines = []
    sites = Sites(lambda asked: dict.fromkeys(asked, data), (0,), lines.append)
    assert sites.ask({0: wire.Who()}) == {}
    return sites, lines


def test_a_refusal_that_is_no_text_is_no_answer():
    _, (line,) = told(REFUSED)
    assert "site 0 refused: not an answer" in line


def test_a_refusal_is_one_short_line_of_printable_text():
    said = "no\nWARNING all is well\r\x1b[2J\u202e" + "x" * 1000
    sites, (line,) = told(wire.encode(wire.Answer(refused=said)))
    assert line.isprintable()
    assert sites.refused[0].startswith("no WARNING all is well")
    assert len(sites.refused[0]) == 500


def test_a_site_without_a_session_is_greeted_again():
    sites = Sites(
        lambda asked: dict.fromkeys(
            asked, wire.encode(wire.Answer(refused=f"x: {wire.NO_SESSION}"))
        ),
        (0,),
        lambda _: None,
        present={0},
    )
    sites.ask({0: wire.Who()})
    assert sites.present == set()


# The byte ledger -----------------------------------------------------------------------------

# Of use to the server, but no input: nobody's bundle was bad.
REPORT = messages.encode(messages.BundleReport(bytes(1)))


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (wire.Ask, b""),
        (wire.Ask, b"\x93garbage"),
        (wire.Ask, REPORT),
        (wire.Advertise, b""),
        (wire.Share, b"\x91" * 3000),
        (wire.Unmask, b""),
        (wire.Learn, b""),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(len(value)),
)
def test_an_answer_of_another_size_costs_the_site_alone(machines, kind, answer):
    there = machines()
    real = there.carry

    def carry(asked):
        found = dict(real(asked))
        if 0 in found and isinstance(wire.decode(asked[0]), kind):
            found[0] = wire.encode(wire.Answer(answer))
        return found

    there.carry = carry
    options = {"rounds": 1, "dreams": 2, "warmup_epochs": 0, "kd_epochs": 0}
    coordinator = there.coordinator({**OPTIONS, **options})
    (one,) = coordinator.rounds()
    assert len(one.dreams) == 1
    up = {site: by["up"] for site, by in coordinator.ledger.by_client().items()}
    if kind is not wire.Learn:
        # What could not be used is no message of the protocol.
        assert up[0] < min(up[site] for site in (1, 2, 3))


# Flower's messages ---------------------------------------------------------------------------


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
            content = body(wire.encode(wire.Answer(str(content).encode())))
        metadata = SimpleNamespace(src_node_id=node, reply_to_message_id=number)
        return SimpleNamespace(has_content=lambda: True, content=content, metadata=metadata)


def body(data):
    return RecordDict({wire.RECORD: ConfigRecord({wire.BODY: data})})


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
        RecordDict({wire.RECORD: ConfigRecord()}),
        RecordDict({wire.RECORD: ArrayRecord({wire.BODY: Array("float32", (0,), "x", b"")})}),
        body("x"),
        body(2**62),
        body(1.5),
        body([b"1"]),
        body(b"\xc1"),
        body(REFUSED),
        body(wire.encode(wire.Answer(b"one"))),
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
