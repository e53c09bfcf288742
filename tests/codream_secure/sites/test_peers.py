"""What the server makes of the answers of sites: one line for each that is of no use."""

import pytest
from machines import OPTIONS

from codream_secure.sites import wire
from codream_secure.sites.peers import Sites
from protocols import messages

WHO = wire.Who(wire.VERSION, bytes(32), bytes(32))
REFUSED = b"\x94\xc4\x00\xc4\x00\xa1\xff\xc4\x00"  # the reason is no UTF-8


def told(data):
    """Return the sites and what they told of an answer to `Who`."""
    lines = []
    sites = Sites(lambda asked: dict.fromkeys(asked, data), (0,), lines.append)
    assert sites.ask({0: WHO}) == {}
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
    sites.ask({0: WHO})
    assert sites.present == set()


# The byte ledger

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
