"""What answering changes follows the public record: attacks by steps that are never finished."""

import itertools

import msgspec
import numpy as np
import pytest
from sum_sites import LENGTH, SumSites, entry, gradient

from codream_secure.sites import wire
from codream_secure.sites.history import after, beginning
from protocols.errors import NotEnoughSurvivors
from protocols.messages import encode_set

SITES = 5
PHASES = [
    (kind, when) for kind in (wire.Ask, wire.Confirm, wire.Unmask) for when in ("before", "after")
]


@pytest.fixture
def there(tmp_path):
    return lambda **more: SumSites(tmp_path / "sites", SITES, **more)


@pytest.mark.parametrize("malicious", [False, True])
def test_with_dropouts_in_every_phase_sums_are_the_clear_ones(there, malicious):
    """A site's state is a function of the record: it moves by the finished steps it is in."""
    running = there(malicious=malicious, key_steps=4)
    faults = [p for p in PHASES if malicious or p[0] is not wire.Confirm]
    asked = iter(itertools.count())
    missed, sums, sizes = {}, 0, set()
    for number in range(2 * len(faults)):
        kind, when = faults[number % len(faults)]
        away = number % SITES

        def fault(site, message, kind=kind, when=when, away=away):
            if site == away and isinstance(message, kind):
                missed[kind, when] = missed.get((kind, when), 0) + 1
                return when
            return None

        running.fault = fault
        totals, survivors = running.sum(f"step {next(asked)}".encode())
        assert (totals == running.expected(survivors)).all()
        sums, sizes = sums + 1, sizes | {len(survivors)}
        assert set(survivors) == set(range(SITES)) - ({away} if kind is wire.Ask else set())
    assert sums == 2 * len(faults)
    assert set(missed) == set(faults)
    assert sizes == {SITES - 1, SITES}
    # Masks cancelled in every sum: nobody was out for longer than its own dropout.
    assert not running.server.sites.refused


@pytest.mark.parametrize("malicious", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [wire.Advertise, wire.Share])
def test_with_dropouts_in_a_key_exchange_sums_are_the_clear_ones(there, kind, when, malicious):
    """A site that lost an exchange is out for its keys, and back with the next ones."""
    running, away, lost = there(malicious=malicious, key_steps=2), 3, []

    def fault(site, message):
        riding = getattr(message, "key_exchange", None)
        if site == away and len(lost) < 3 and (isinstance(message, kind) or riding is not None):
            lost.append(message)
            return when
        return None

    running.fault = fault
    found = []
    for number in range(6):
        totals, survivors = running.sum(f"step {number}".encode())
        assert (totals == running.expected(survivors)).all()
        assert len(survivors) >= SITES - 1
        found.append(away in survivors)
    assert len(lost) == 3
    assert found[-1]
    assert not running.server.sites.refused


def primed(running, request, *, victim):
    """The attack: ask the victim alone, and never finish the step."""
    running.fault = lambda site, message: (
        "before" if isinstance(message, wire.Ask) and site != victim else None
    )
    with pytest.raises(NotEnoughSurvivors):
        running.sum(request)
    running.fault = lambda *_: None


def test_a_step_that_is_never_finished_moves_nobodys_state(there):
    """Before, the next common sum carried the victim's gradient, and the server had the rest."""
    running, victim = there(), 2
    running.sum(b"common")
    primed(running, b"crafted", victim=victim)
    totals, survivors = running.sum(b"common again")
    assert survivors == tuple(range(SITES))
    found = totals - running.expected(survivors)
    assert (found == 0).all()
    assert (gradient(victim, b"crafted") // 2 > 0).any()


def test_a_server_that_dies_in_a_step_and_comes_back_primes_nobody(there):
    """The step is not in the record at all when the next one is asked."""
    running, victim = there(), 1
    running.sum(b"common")
    primed(running, b"crafted", victim=victim)
    running.record.items.pop()
    running.record.digest = digest(running)
    totals, survivors = running.sum(b"common again")
    assert (totals == running.expected(survivors)).all()
    assert victim in survivors


def digest(running):
    found = beginning(running.server._begin)
    for item in running.record.items:
        found = after(found, item.entry)
    return found


def others(item):
    """Return an item without its first survivor."""
    survivors = bytearray(item.entry.survivors)
    survivors[0] ^= 1
    return entry(item, survivors=bytes(survivors))


LIES = {
    "other survivors": (others, "other survivors than this site signed"),
    "another request": (lambda i: entry(i, request=bytes(32)), "another request than this site"),
    "another sum": (lambda i: entry(i, on=bytes(32)), "another sum than this site took part in"),
    "a sum of few": (
        lambda i: entry(i, survivors=encode_set((0, 1), tuple(range(SITES)))),
        "fewer sites than the threshold",
    ),
    "a step that is not over": (lambda i: entry(i, step=9), "a step that is not over"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_record_that_contradicts_what_a_site_did_is_refused(there, name):
    running, (lie, told) = there(), LIES[name]
    running.lie = lie
    running.sum(b"first")
    running.lie = lambda item: item
    with pytest.raises(NotEnoughSurvivors):
        running.sum(b"second")
    assert sum(told in reason for reason in running.server.sites.refused.values()) >= 4


def test_a_site_is_not_listed_in_a_sum_that_it_did_not_answer(there):
    running = there(malicious=False)
    running.sum(b"zeroth")
    running.fault = lambda site, m: "before" if site == 4 and isinstance(m, wire.Ask) else None
    running.lie = lambda i: entry(i, survivors=encode_set(range(SITES), tuple(range(SITES))))
    running.sum(b"first")
    running.fault = lambda *_: None
    running.sum(b"second")
    assert "that it did not answer" in running.server.sites.refused[4]


@pytest.mark.parametrize("proof", ["none", "of another step"])
def test_a_site_that_saw_no_signatures_wants_them_with_the_record(there, proof):
    running = there()
    running.sum(b"first")
    old = running.record.items[0].proof
    wrong = None if proof == "none" else old
    running.lie = lambda item: msgspec.structs.replace(item, proof=wrong)
    running.fault = lambda site, m: "before" if site == 4 and isinstance(m, wire.Unmask) else None
    _, survivors = running.sum(b"second")
    assert 4 in survivors
    running.fault = lambda *_: None
    _, survivors = running.sum(b"third")
    assert survivors == (0, 1, 2, 3)
    told = {"none": "no signatures", "of another step": "signature is not valid"}[proof]
    assert told in running.server.sites.refused[4]


def test_an_answer_that_was_lost_leaves_no_state(there):
    running = there()
    running.fault = lambda site, m: "after" if site == 3 and isinstance(m, wire.Ask) else None
    _, survivors = running.sum(b"first")
    assert 3 not in survivors
    running.fault = lambda *_: None
    totals, survivors = running.sum(b"second")
    assert 3 in survivors
    assert (running.velocity[3] == gradient(3, b"second")).all()
    assert (totals == running.expected(survivors)).all()
    assert totals.shape == (LENGTH,)
    assert totals.dtype == np.uint32
