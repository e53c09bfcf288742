"""Sites and a coordinator without Flower: the same bits as a simulation, faults and restarts.

A site is built anew for every message, as Flower does it: all that it knows is in its folder.
"""

import hashlib
import stat
from dataclasses import astuple, replace

import msgspec
import numpy as np
import pytest
from machines import OPTIONS, PRIVATE

import protocols.client.step
from codream_secure.aggregation.requests import (
    VERSION,
    EvaluateRequest,
    LabelRequest,
    decode_request,
    encode,
)
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.spec import InputSpec
from codream_secure.errors import RequestRefused, UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.sites import history, wire
from codream_secure.sites.dream_site import _ModelState
from codream_secure.sites.session import SiteSettings
from codream_secure.sites.site import Site
from codream_secure.storage.checkpoint import decode_state
from protocols.client import offline as client_offline
from protocols.client.states import HeldShares, SelfShare
from protocols.primitives.keys import SigningKey


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        {**OPTIONS, "threat_model": "malicious"},
        {**OPTIONS, "method": "codream-fast", "dream_batches": 2, "dreams": 4},
        {**OPTIONS, "method": "codream-fast", "dream_batches": 2, "parallel_batches": True},
        {**OPTIONS, "local_steps": 3, "adaptive": "jsd", "label_weighting": "confidence"},
        PRIVATE,
    ],
    ids=["plain", "malicious", "fast", "parallel batches", "options", "private"],
)
def test_dreams_are_those_of_a_simulation_bit_by_bit(machines, options):
    there = machines(malicious=options.get("threat_model") == "malicious")
    coordinator = there.coordinator(options)
    rounds = list(coordinator.run())
    simulation = Simulation(Config.from_options(options), compare_independent=False)
    list(simulation.rounds())
    found = [dream for one in rounds for dream in one.dreams]
    assert (
        len(found) == len(simulation.dreams) == 2 * (resolve(simulation.config).dream.dream_batches)
    )
    for here, expected in zip(found, simulation.dreams, strict=True):
        assert (here.pixels == expected.pixels).all()
        assert (here.targets == expected.targets).all()
    assert rounds[-1].server == pytest.approx(simulation.observer.history[-1].server)
    assert [one.learned for one in rounds] == [4, 4]
    assert there.told == []


def test_a_folder_is_its_owners_alone_and_holds_no_secret_of_a_finished_step(machines):
    there = machines()
    list(there.coordinator(OPTIONS).run())
    for site in range(4):
        folder = there.folder / f"site-{site}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
        assert not [path for path in folder.iterdir() if path.name.startswith("batch-")]


def test_a_site_learns_no_labels_of_other_dreams_than_it_was_asked_about(machines):
    """It was there for an attempt at labels that was aborted, and not for the one that held."""
    there, attempts = machines(), []

    def fault(_number, site, message):
        if not isinstance(message, wire.Ask):
            return None
        if not isinstance(decode_request(message.broadcast[history.SIZE :]), LabelRequest):
            return None
        if message.step not in attempts:
            attempts.append(message.step)
        away = {0: (1, 2), 1: (0,)}[attempts.index(message.step)]
        return "before" if site in away else None

    there.fault = fault
    (round_,) = there.coordinator({**OPTIONS, "rounds": 1}).run()
    assert len(attempts) == 2
    assert len(round_.dreams) == 1
    kept = {}
    for site in range(4):
        data = (there.folder / f"site-{site}" / "model").read_bytes()
        kept[site] = len(decode_state(data, _ModelState).buffer)
    assert kept == {0: 0, 1: 1, 2: 1, 3: 1}


def test_without_a_seed_every_site_rounds_by_a_secret_of_its_own(machines):
    there = machines()
    options = {name: value for name, value in OPTIONS.items() if name != "seed"}
    rounds = list(there.coordinator(options).run())
    assert [one.learned for one in rounds] == [4, 4]
    secrets = {(there.folder / f"site-{site}" / "rounding").read_bytes() for site in range(4)}
    assert {len(secret) for secret in secrets} == {32}
    assert len(secrets) == 4
    seeded = machines()
    seeded.folder = there.folder.with_name("seeded")
    expected = list(seeded.coordinator(OPTIONS).run())
    assert not (seeded.folder / "site-0" / "rounding").exists()
    # All else follows from the default seed, which is 0: what differs is the rounding.
    assert rounds[0].digest != expected[0].digest


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["Advertise", "Share", "Ask", "Unmask"])
def test_a_site_that_dies_costs_no_more_than_itself_and_comes_back(machines, when, kind):
    there = machines()
    died = []

    def fault(_number, site, message):
        if site == 2 and type(message).__name__ == kind and not died:
            died.append(kind)
            return when
        return None

    there.fault = fault
    rounds = list(there.coordinator(OPTIONS).run())
    assert died == [kind]
    assert [len(one.dreams) for one in rounds] == [1, 1]
    assert [one.learned for one in rounds] == [4, 4]
    assert any("site 2 did not answer" in line for line in there.told)
    # In the second round, with new keys, it takes part again.
    assert (2, "Ask") in there.log[len(there.log) // 2 :]


def test_below_the_threshold_a_step_is_aborted_and_the_run_goes_on(machines):
    there = machines()
    asked = []

    def fault(_number, site, message):
        if isinstance(message, wire.Ask):
            asked.append(site)
            return "before" if len(asked) <= 4 and site in {0, 1} else None
        return None

    there.fault = fault
    coordinator = there.coordinator(OPTIONS)
    rounds = list(coordinator.run())
    assert coordinator.aggregator.aborted_steps == 1
    assert [len(one.dreams) for one in rounds] == [1, 1]


def test_the_same_message_again_gets_the_same_bytes(machines):
    there = machines()
    real, twice = there.carry, []

    def carry(messages):
        first, second = real(messages), real(messages)
        kinds = {type(wire.decode(m)).__name__ for m in messages.values()}
        if kinds & {"Advertise", "Share", "Ask", "Unmask"}:
            twice.append(first == second)
        return second

    there.carry = carry
    rounds = list(there.coordinator(OPTIONS).run())
    assert twice
    assert all(twice)
    simulation = Simulation(Config.from_options(OPTIONS), compare_independent=False)
    list(simulation.rounds())
    assert (rounds[-1].dreams[0].pixels == simulation.dreams[-1].pixels).all()


def test_private_steps_stay_charged_when_a_site_dies(machines):
    there = machines()
    list(there.coordinator(PRIVATE).run())
    charged = (there.folder / "site-0" / "charged").read_text()
    assert charged == "4"


# Keys that ride along ---------------------------------------------------------------------------


def asks(there, kind):
    return [(site, message) for site, message in there.messages if isinstance(message, kind)]


def test_the_next_keys_ride_with_a_step_and_take_no_round_trip(machines):
    there = machines()
    coordinator = there.coordinator({**OPTIONS, "key_steps": 2, "rounds": 1})
    (first,) = coordinator.run()
    # 4 sums under keys for 2, 2: one exchange of its own, and one that rode.
    assert len(asks(there, wire.Advertise)) == len(asks(there, wire.Share)) == 4
    assert [m.beside.batch.number for _, m in asks(there, wire.Unmask) if m.beside] == [1] * 4
    assert sorted({m.batch.number for _, m in asks(there, wire.Ask)}) == [0, 1]
    # Hello, two of keys, two a sum, one to learn, and one to end.
    assert coordinator.sites.traffic.round_trips == 1 + 2 + 2 * 4 + 1 + 1
    simulation = Simulation(Config.from_options({**OPTIONS, "rounds": 1}))
    list(simulation.rounds())
    assert (first.dreams[0].pixels == simulation.dreams[0].pixels).all()


def test_no_keys_are_made_after_the_last_step(machines):
    there = machines()
    list(there.coordinator({**OPTIONS, "key_steps": 8}).run())
    assert not [m for _, m in asks(there, wire.Ask) if m.beside]


@pytest.mark.parametrize("kind", [wire.Ask, wire.Unmask])
def test_who_misses_keys_that_ride_gets_some_in_an_exchange_of_its_own(machines, kind):
    there = machines()
    missed = []

    def fault(_number, site, message):
        if site == 1 and isinstance(message, kind) and message.beside and not missed:
            missed.append(site)
            return "before"
        return None

    there.fault = fault
    list(there.coordinator({**OPTIONS, "key_steps": 4}).run())
    assert missed
    assert len(asks(there, wire.Advertise)) == 8
    later = [m.batch.number for s, m in asks(there, wire.Ask) if s == 1]
    assert max(later) == max(m.batch.number for _, m in asks(there, wire.Ask))


def test_nothing_is_put_off_for_a_site_that_stays_away(machines):
    there = machines()
    there.fault = lambda number, site, _: "before" if site == 1 and number > 20 else None
    rounds = list(there.coordinator({**OPTIONS, "key_steps": 1}).run())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    # Tried again until it has been silent three times, then only asked along the way.
    assert len([s for s, _ in asks(there, wire.Advertise) if s == 0]) <= 3


def test_a_site_keeps_few_records_whatever_it_is_asked(machines):
    there = machines()
    list(there.coordinator(OPTIONS).run())
    for number in (50, 90, 20, 70, 60, 80, 10):
        with Site(there.settings(0)) as site:
            assert not site.handle(wire.Advertise(wire.Batch(number, 2))).refused
    names = [path.name for path in (there.folder / "site-0").iterdir()]
    assert len([name for name in names if name.startswith("batch-")]) <= 3


# Wrong shares -----------------------------------------------------------------------------------


def other(share):
    return bytes([0]) + hashlib.sha256(share).digest()[1:]


def test_who_gives_a_wrong_share_is_asked_for_evidence_and_left_out(machines, monkeypatch):
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
    rounds = list(there.coordinator({**OPTIONS, "threat_model": "malicious"}).run())
    assert lied
    assert [site for site, _ in asks(there, wire.Evidence)] == [2]
    assert there.told.count("site 2 gave or dealt wrong shares, and is left out") == 1
    assert [len(one.dreams) for one in rounds] == [1, 1]


def test_who_dealt_a_wrong_share_is_named_and_its_holder_is_not(machines, monkeypatch):
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
    rounds = list(there.coordinator({**OPTIONS, "threat_model": "malicious"}).run())
    assert dealt
    assert [site for site, _ in asks(there, wire.Evidence)] == [0]
    assert "site 3 gave or dealt wrong shares, and is left out" in there.told
    assert not [line for line in there.told if "site 0" in line]
    assert [len(one.dreams) for one in rounds] == [1, 1]


# Accuracy ---------------------------------------------------------------------------------------


def test_the_sites_accuracy_is_a_mean_that_came_out_of_a_masked_sum(machines, data):
    there = machines()
    coordinator = there.coordinator(OPTIONS)
    list(coordinator.run())
    found = []
    for client in range(4):
        with Site(there.settings(client)) as site:
            learning = site._learning()
            found.append(learning._accuracy(learning._restored()[0]))
    mean, sites = coordinator.finished[-1].sites
    assert sites == 4
    assert mean == pytest.approx(np.mean(found), abs=1e-4)
    simulation = Simulation(Config.from_options(OPTIONS), compare_independent=False)
    list(simulation.rounds())
    assert mean == pytest.approx(simulation.observer.history[-1].clients_mean, abs=1e-4)


def test_it_is_not_asked_for_under_dp_nor_where_it_is_turned_off(machines):
    there = machines()
    assert [one.sites for one in there.coordinator(PRIVATE).run()] == [None, None]
    assert [one.sites for one in there.coordinator(OPTIONS, evaluates=False).run()] == [None] * 2


@pytest.mark.parametrize("whole", [False, True])
def test_under_dp_sites_tell_nothing_of_test_data_of_their_own(machines, whole):
    there = machines()
    real = there.settings
    there.settings = lambda site: replace(real(site), whole=whole)
    rounds = list(there.coordinator(PRIVATE, evaluates=True).run())
    assert [None if one.sites is None else one.sites[1] for one in rounds] == (
        [None, None] if whole else [4, 4]
    )


# Models and data of one's own -------------------------------------------------------------------


def test_a_site_may_have_a_model_that_nobody_else_knows(machines, data):
    there = machines()
    real = there.settings
    there.settings = lambda site: replace(real(site), model="lenet5" if site == 2 else None)
    rounds = list(there.coordinator(OPTIONS).run())
    assert [one.learned for one in rounds] == [4, 4]
    with Site(there.settings(2)) as site:
        federation, _ = site._learning()._restored()
    assert type(federation.members[2].client.learner.model).__name__ == "LeNet5"


def test_a_site_that_has_seen_some_classes_takes_part(machines, data):
    there = machines()
    real = there.settings
    few = data.y_train < 7
    own = replace(
        data,
        x_train=data.x_train[few],
        y_train=data.y_train[few],
        x_test=data.x_test[data.y_test < 7],
        y_test=data.y_test[data.y_test < 7],
        spec=InputSpec(1, 8, 8, 7),
    )
    there.settings = lambda site: replace(
        real(site), whole=site == 3, load=(lambda: own) if site == 3 else real(site).load
    )
    rounds = list(there.coordinator(OPTIONS).run())
    assert [one.learned for one in rounds] == [4, 4]
    assert there.told == []


# Refusals ----------------------------------------------------------------------------------------


def test_other_data_or_another_version_are_refused_by_name(machines, data):
    there = machines()
    small = data.x_train[:, :, :6, :6]
    other = type(data)(
        "small",
        small,
        data.y_train,
        small[:10],
        data.y_test[:10],
        InputSpec(1, 6, 6, 10),
        data.scaling,
    )
    real = there.settings

    def settings(site):
        found = real(site)
        if site != 3:
            return found
        return SiteSettings(client=3, folder=found.folder, load=lambda: other)

    there.settings = settings
    rounds = list(there.coordinator(OPTIONS).run())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    assert any("site 3" in line and "shape (1, 6, 6, 10)" in line for line in there.told)


def test_another_version_is_refused_by_name(machines):
    there = machines()
    real = there.carry

    def carry(messages):
        for site, data_ in messages.items():
            message = wire.decode(data_)
            if site == 1 and isinstance(message, wire.Hello):
                other_ = msgspec.structs.replace(message, version=message.version + 1)
                messages = {**messages, site: wire.encode(other_)}
        return real(messages)

    there.carry = carry
    rounds = list(there.coordinator(OPTIONS).run())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    assert any("site 1 refused" in line and "same codream-secure" in line for line in there.told)


def test_too_few_sites_end_the_run_in_one_line(machines):
    there = machines()
    there.fault = lambda _n, site, _m: "before" if site < 2 else None
    with pytest.raises(UserError, match="2 of 4 sites can take part and 3 must"):
        list(there.coordinator(OPTIONS).run())


def test_a_wrong_signing_key_is_refused_by_the_site_itself(machines):
    there = machines(malicious=True)
    real = there.settings

    def settings(site):
        found = real(site)
        if site != 1:
            return found
        return SiteSettings(
            client=1,
            folder=found.folder,
            load=found.load,
            identity=SigningKey.from_private_bytes(bytes(32)),
            roster=found.roster,
        )

    there.settings = settings
    rounds = list(there.coordinator({**OPTIONS, "threat_model": "malicious"}).run())
    assert any("site 1" in line for line in there.told)
    assert [len(one.dreams) for one in rounds] == [1, 1]


SHOWN = {
    "other settings": (wire.Hello, lambda m: {"options": {**m.options, "warmup_epochs": 0}}),
    "other labels": (wire.Learn, lambda m: {"labels": ()}),
}


@pytest.mark.parametrize("malicious", [False, True])
@pytest.mark.parametrize("name", SHOWN)
def test_a_server_that_tells_one_site_other_things_learns_nothing_of_it(machines, name, malicious):
    """Else it would know what all others answer, and by subtraction what this one does (D4)."""
    there, (kind, change) = machines(malicious=malicious), SHOWN[name]
    real = there.carry

    def carry(messages):
        told = {}
        for site, data in messages.items():
            message = wire.decode(data)
            if site == 1 and isinstance(message, kind):
                message = msgspec.structs.replace(message, **change(message))
            told[site] = wire.encode(message)
        return real(told)

    there.carry = carry
    options = OPTIONS | {"threat_model": "malicious" if malicious else "semi-honest"}
    rounds = list(there.coordinator(options).run())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    refusals = [line for line in there.told if "was told other things" in line]
    assert refusals
    assert all(line.startswith("site 1 ") for line in refusals)


def test_what_one_site_alone_has_learned_keeps_it_out(machines):
    there = machines(malicious=True)
    coordinator = there.coordinator(OPTIONS | {"threat_model": "malicious"})
    rounds = coordinator.run()
    next(rounds)
    with Site(there.settings(2)) as site:
        assert site.handle(wire.Learn(2, ())).data == b"done"
    next(rounds)
    assert any(line.startswith("site 2 refused") for line in there.told)


def test_a_site_that_missed_labels_is_sent_them_before_the_next_round(machines):
    there = machines()
    missed = []

    def fault(_number, site, message):
        if site == 3 and isinstance(message, wire.Learn) and not missed:
            missed.append(message)
            return "before"
        return None

    there.fault = fault
    rounds = list(there.coordinator(OPTIONS).run())
    assert [one.learned for one in rounds] == [3, 4]
    assert [m for s, m in there.messages if s == 3 and m == missed[0]] == missed * 2
    assert not any("was told other things" in line for line in there.told[2:])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"secure": False}, "always masked"),
        ({"dp_eps": 8.0, "dp_unit": "client", "accept_low_utility": True}, "for simulations"),
        ({"models": "os:getcwd"}, "this site's to name"),
    ],
)
def test_a_site_does_not_rely_on_its_server_s_own_checks(machines, changed, told):
    there = machines()
    run = there.coordinator(OPTIONS)._run
    with Site(there.settings(0)) as site:
        answer = site.handle(
            wire.Hello(wire.VERSION, bytes(32), {**run.options, **changed}, run.spec, ())
        )
    assert told in answer.refused


def test_evaluations_are_of_the_finished_round_alone(machines):
    there = machines()
    list(there.coordinator(OPTIONS).run())
    with Site(there.settings(0)) as site:
        learning = site._learning()
        history = learning.session.history
        for number, step in ((1, 99), (3, 99), (2, 98)):
            broadcast = history + encode(EvaluateRequest(version=VERSION, round=number))
            with pytest.raises(RequestRefused):
                learning.answer(wire.Ask(wire.Batch(9, 1), step, b"", broadcast))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"threat_model": "malicious", "rejoin": True}, "does not allow rejoining"),
        ({"threat_model": "semi-honest"}, "not set up for the semi-honest model"),
        ({"threat_model": "malicious", "threshold": 2}, "threshold 2 of 4 is too low"),
    ],
)
def test_a_site_with_a_signing_key_is_not_talked_out_of_it(machines, asked, told):
    there = machines(malicious=True)
    options = resolve(Config.from_options({**OPTIONS, **asked})).options()
    roster = there.roster if asked["threat_model"] == "malicious" else ()
    spec = astuple(there.data.spec)
    with Site(there.settings(0)) as site:
        answer = site.handle(wire.Hello(wire.VERSION, bytes(32), options, spec, roster))
    assert told in answer.refused


def test_a_server_with_another_roster_is_refused(machines):
    there = machines(malicious=True)
    coordinator = there.coordinator({**OPTIONS, "threat_model": "malicious"})
    coordinator._identities = tuple(reversed(there.roster))
    with pytest.raises(UserError, match="0 of 4 sites"):
        list(coordinator.run())


@pytest.mark.parametrize("data_", [b"", b"\xff", msgspec.msgpack.encode(["Ask", 1])])
def test_bytes_that_are_no_message_are_refused(data_):
    with pytest.raises(msgspec.DecodeError):
        wire.decode(data_)


def test_before_a_session_nothing_is_answered(machines):
    there = machines()
    with Site(there.settings(0)) as site:
        answer = site.handle(wire.Advertise(wire.Batch(0, 3)))
    assert "no session has begun" in answer.refused


def test_an_error_that_may_quote_data_is_told_by_its_name_alone(machines, data, monkeypatch):
    there = machines()
    list(there.coordinator(OPTIONS).run())

    def broken(*_):
        raise ValueError(f"pixel {data.x_train[0, 0, 3, 3]}")

    monkeypatch.setattr("codream_secure.federation.client.Client.answer", broken)
    with Site(there.settings(0)) as site:
        site._session = msgspec.structs.replace(site._session, rounds=0)
        monkeypatch.setattr("codream_secure.sites.site.StoredClient.open_bundles", lambda *_: None)
        monkeypatch.setattr("codream_secure.sites.dream_site.Learning.answer", broken)
        answer = site.handle(wire.Ask(wire.Batch(9, 1), 99, b"", b""))
    assert answer.refused == "ValueError; see the site's log"


def test_what_cannot_run_over_machines_is_said(machines):
    with pytest.raises(UserError, match="always masked"):
        machines().coordinator({**OPTIONS, "secure": False})


def test_own_data_needs_a_public_number(machines, data, tmp_path, caplog):
    options = {k: v for k, v in OPTIONS.items() if k != "samples_per_client"}
    resolved = resolve(Config.from_options(options)).options()
    with Site(
        SiteSettings(client=0, folder=tmp_path / "own", load=lambda: data, whole=True)
    ) as site:
        answer = site.handle(wire.Hello(wire.VERSION, bytes(32), resolved, (1, 8, 8, 10)))
    # The text may quote data; it is in the site's own log.
    assert answer.refused == "UserError; see the site's log"
    assert "--samples-per-client" in caplog.text
    assert np.isfinite(data.x_train).all()
