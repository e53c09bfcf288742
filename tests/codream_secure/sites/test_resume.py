"""A server that dies at any moment and starts again goes on with the same run."""

import shutil
import stat

import pytest
from machines import OPTIONS, PRIVATE, Machines

from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import StatisticsRequest
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.federation.client import Client
from codream_secure.federation.simulation import Simulation
from codream_secure.sites import history, wire
from codream_secure.sites.dream_site import DreamSite
from codream_secure.sites.journal import Journal
from codream_secure.sites.sums import RemoteSums

BY_SITE = {k: v for k, v in OPTIONS.items() if k not in ("seed", "validation")}
BY_SITE |= {"models": "linear", "dp_eps": 8.0, "dp_unit": "client", "accept_low_utility": True}
BY_SITE |= {"threat_model": "malicious"}
SMALL = {**OPTIONS, "clients": 3, "models": "linear", "dream_steps": 1, "dreams": 4}


class ServerDiedError(Exception):
    """The server's process is gone."""


@pytest.fixture
def sums(monkeypatch):
    """Check that every sum is that of what its survivors put in.

    Return the steps of them all, and what was put in by broadcast; a test clears them.
    """
    put_in, steps = {}, []
    original, total = Client.compute, RemoteSums.sum

    def compute(self, request, broadcast, step):
        found = original(self, request, broadcast, step)
        put_in.setdefault(broadcast, []).append(found)
        return found

    def summed(self, task, public, *arguments, **options):
        broadcast = public[history.SIZE :]
        steps.append(task.step)
        before = len(put_in.get(broadcast, ()))
        result = total(self, task, public, *arguments, **options)
        assert before == 0
        parts = put_in[broadcast]
        if len(parts) == len(result.survivors):
            for name, values in result.totals.items():
                assert (values == sum(part[name] for part in parts)).all()
        return result

    monkeypatch.setattr(Client, "compute", compute)
    monkeypatch.setattr(RemoteSums, "sum", summed)
    return steps, put_in


def run_with_a_crash(there, out, options, at, when):
    """Run until the server dies at a message, if it has so many; then go on to the end."""

    def fault(number, site, message):
        if number != at:
            return
        if when == "after":
            carry_out(there, site, message)
        raise ServerDiedError

    there.fault = fault
    journal = Journal.create(out)
    try:
        list(there.coordinator(options, journal=journal).rounds())
    except ServerDiedError:
        pass
    finally:
        journal.close()
    there.fault = lambda *_: None
    died = there.count == at
    journal = Journal.resume(out)
    coordinator = there.coordinator(options, journal=journal)
    list(coordinator.rounds())
    journal.close()
    return coordinator, died


def carry_out(there, site, message):
    """Let the site answer, and the answer be lost with the server."""
    with DreamSite(there.settings(site)) as running:
        running.handle(message)


def check_keys_of_steps(there):
    """No keys and no number of a step were used twice by the server: what sites were asked."""
    asked = {}
    for site, message in there.messages:
        if isinstance(message, wire.Ask):
            key = message.batch.number, message.request
            assert asked.setdefault((site, key), message.broadcast) == message.broadcast
            assert asked.setdefault((site, message.step), message.broadcast) == message.broadcast


@pytest.fixture
def run(tmp_path, data, sums):
    def go(at, when, options=SMALL, **more):
        folder = tmp_path / f"run-{at}-{when}"
        there = Machines(folder / "sites", data, sites=options["clients"], **more)
        coordinator, died = run_with_a_crash(there, folder / "out", options, at, when)
        check_keys_of_steps(there)
        steps, put_in = sums
        assert len(set(steps)) == len(steps)
        assert [one.number for one in coordinator.finished] == [1, 2]
        assert all(one.learned == options["clients"] for one in coordinator.finished)
        assert coordinator.aggregator.aborted_steps <= 1
        steps.clear()
        put_in.clear()
        shutil.rmtree(folder)
        return coordinator, died

    return go


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [2, 7, 12, 17, 22, 27, 32])
def test_a_server_that_dies_at_a_message_goes_on(run, at, when):
    _, died = run(at, when)
    assert died


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        {**SMALL, "clients": 4, "threat_model": "malicious"},
        {**SMALL, "method": "codream-fast", "dream_batches": 2},
        {**PRIVATE, "clients": 3, "dream_steps": 1},
    ],
    ids=["plain", "malicious", "fast", "private"],
)
def test_a_server_that_dies_at_any_message_goes_on(run, when, options):
    at, died = 0, True
    while died:
        at += 1
        more = {"malicious": True} if "threat_model" in options else {}
        _, died = run(at, when, options, **more)
    assert at > 20


def rounds_of(there, options, out, *, stop_after):
    journal = Journal.create(out)
    running = there.coordinator(options, journal=journal).rounds()
    first = [next(running) for _ in range(stop_after)]
    running.close()
    journal.close()
    return first


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        {**OPTIONS, "method": "codream-fast", "dream_batches": 2, "dreams": 4},
        {**OPTIONS, "adaptive": "jsd", "statistics_momentum": 0.5, "bn_weight": 0.1},
        PRIVATE,
    ],
    ids=["plain", "fast", "options", "private"],
)
def test_between_rounds_it_is_as_if_nothing_had_happened(tmp_path, machines, options):
    there = machines()
    (first,) = rounds_of(there, options, tmp_path / "out", stop_after=1)
    journal = Journal.resume(tmp_path / "out")
    coordinator = there.coordinator(options, journal=journal)
    assert [one.digest for one in coordinator.finished] == [first.digest]
    list(coordinator.rounds())
    simulation = Simulation(Config.from_options(options), compare_independent=False)
    list(simulation.rounds())
    found = [dream for one in (first, coordinator.finished[-1]) for dream in one.dreams]
    for here, expected in zip(found, simulation.dreams, strict=True):
        assert (here.pixels == expected.pixels).all()
        assert (here.targets == expected.targets).all()
    student = simulation.federation.student.model.state_dict()
    for name, value in coordinator.server.student.model.state_dict().items():
        assert (value == student[name]).all()
    assert coordinator.aggregator.aborted_steps == 0


@pytest.mark.parametrize(
    ("at", "when"),
    [
        (22, "after"),
        *(
            pytest.param(at, when, marks=pytest.mark.slow)
            for at, when in [(10, "before"), (18, "after"), (22, "before"), (26, "after")]
        ),
    ],
)
def test_with_sites_as_the_unit_a_killed_server_gets_no_more_than_was_planned(
    tmp_path, data, at, when
):
    """No site answers one noisy sum more than ε counts, and none twice with other noise."""
    there = Machines(tmp_path / "sites", data, malicious=True)
    coordinator, died = run_with_a_crash(there, tmp_path / "out", BY_SITE, at, when)
    assert died
    check_keys_of_steps(there)
    assert [one.number for one in coordinator.finished] == [1, 2]
    assert coordinator.label_plan.charged == 2
    assert coordinator.label_plan.guarantee().epsilon <= 8.0
    for site in range(4):
        assert (there.folder / f"site-{site}" / "charged").read_bytes() in (b"1", b"2")
    assert sum(len(one.dreams) for one in coordinator.finished) >= 1


def test_in_the_middle_of_a_round_sums_are_taken_from_the_journal(tmp_path, machines):
    """The server dies between two steps: nothing is asked again, and no bit differs."""
    there, out = machines(), tmp_path / "out"
    real = there.carry

    def carry(messages):
        if any(isinstance(wire.decode(m), wire.Learn) for m in messages.values()):
            raise ServerDiedError
        return real(messages)

    there.carry = carry
    journal = Journal.create(out)
    with pytest.raises(ServerDiedError):
        list(there.coordinator(OPTIONS, journal=journal).rounds())
    journal.close()
    before = len([m for _, m in there.messages if isinstance(m, wire.Ask)])
    there.carry = real
    journal = Journal.resume(out)
    coordinator = there.coordinator(OPTIONS, journal=journal)
    first = next(coordinator.rounds())
    asked = [m for _, m in there.messages if isinstance(m, wire.Ask)][before:]
    assert {type(decode_request(m.broadcast[history.SIZE :])).__name__ for m in asked} == {
        "EvaluateRequest"
    }
    simulation = Simulation(Config.from_options(OPTIONS), compare_independent=False)
    next(simulation.rounds())
    assert (first.dreams[0].pixels == simulation.dreams[0].pixels).all()


def test_class_means_are_asked_once_whatever_happens(tmp_path, machines):
    """Under DP a release is charged and never made again."""
    there, out = machines(), tmp_path / "out"

    def fault(_number, _site, message):
        if isinstance(message, wire.Unmask):
            raise ServerDiedError

    there.fault = fault
    journal = Journal.create(out)
    with pytest.raises(ServerDiedError):
        list(there.coordinator(PRIVATE, journal=journal).rounds())
    journal.close()
    there.fault = lambda *_: None
    journal = Journal.resume(out)
    coordinator = there.coordinator(PRIVATE, journal=journal)
    list(coordinator.rounds())
    asked = [
        (site, message)
        for site, message in there.messages
        if isinstance(message, wire.Ask)
        and isinstance(decode_request(message.broadcast[history.SIZE :]), StatisticsRequest)
    ]
    assert len(asked) == 4
    assert coordinator.server.images is None
    assert coordinator.aggregator.aborted_steps == 1
    assert {(there.folder / f"site-{s}" / "charged").read_text() for s in range(4)} == {"4"}


def test_a_run_that_is_over_asks_nobody(tmp_path, machines):
    there = machines()
    rounds_of(there, OPTIONS, tmp_path, stop_after=2)
    before = there.count
    journal = Journal.resume(tmp_path)
    coordinator = there.coordinator(OPTIONS, journal=journal)
    assert list(coordinator.rounds()) == []
    assert there.count == before
    assert [len(one.dreams) for one in coordinator.finished] == [0, 1]


# Folders ----------------------------------------------------------------------------------------


def test_a_used_folder_is_not_overwritten(tmp_path, machines):
    out = tmp_path / "out"
    rounds_of(machines(), OPTIONS, out, stop_after=1)
    before = {path.name: path.read_bytes() for path in (out / "state").iterdir()}
    with pytest.raises(UserError, match="holds a run already"):
        Journal.create(out)
    assert {path.name: path.read_bytes() for path in (out / "state").iterdir()} == before


def test_a_folder_with_results_of_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run already"):
        Journal.create(tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"rounds": 3}, "rounds"), ({"dreams": 5, "seed": 1}, "dreams, seed")],
)
def test_another_run_is_refused_and_nothing_is_overwritten(tmp_path, machines, changed, told):
    there, out = machines(), tmp_path / "out"
    rounds_of(there, OPTIONS, out, stop_after=1)
    before = {path.name: path.read_bytes() for path in (out / "state").iterdir()}
    journal = Journal.resume(out)
    with pytest.raises(UserError, match=f"another {told}; give the settings"):
        there.coordinator({**OPTIONS, **changed}, journal=journal)
    journal.close()
    assert {path.name: path.read_bytes() for path in (out / "state").iterdir()} == before


def test_there_must_be_a_run_to_go_on_with(tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        Journal.resume(tmp_path)


def test_two_servers_cannot_go_on_with_one_run(tmp_path, machines):
    rounds_of(machines(), OPTIONS, tmp_path, stop_after=1)
    first = Journal.resume(tmp_path)
    with pytest.raises(UserError, match="in use by another process"):
        Journal.resume(tmp_path)
    first.close()


def test_the_state_is_its_owners_alone(tmp_path, machines):
    rounds_of(machines(), OPTIONS, tmp_path, stop_after=1)
    folder = tmp_path / "state"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    # Steps are kept only until the next state.
    assert not [path for path in folder.iterdir() if path.name.startswith("step-")]


@pytest.mark.parametrize("name", ["run", "state", "next-batch"])
def test_a_damaged_record_is_said_in_one_line(tmp_path, machines, name):
    rounds_of(machines(), OPTIONS, tmp_path, stop_after=1)
    path = tmp_path / "state" / name
    path.write_bytes(b"x" + path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        Journal.resume(tmp_path)


def test_a_machine_that_gets_other_dreams_from_the_same_sums_is_refused(
    tmp_path, machines, monkeypatch
):
    there, out = machines(), tmp_path / "out"

    def fault(_number, _site, message):
        if isinstance(message, wire.Learn):
            raise ServerDiedError

    there.fault = fault
    journal = Journal.create(out)
    with pytest.raises(ServerDiedError):
        list(there.coordinator(OPTIONS, journal=journal).rounds())
    journal.close()
    journal = Journal.resume(out)
    coordinator = there.coordinator(OPTIONS, journal=journal)
    there.fault = lambda *_: None
    original = coordinator._scale.to_pixels
    monkeypatch.setattr(
        type(coordinator._scale), "to_pixels", lambda self, *a: 255 - original(*a), raising=True
    )
    with pytest.raises(UserError, match="other dreams from the recorded sums"):
        list(coordinator.rounds())
