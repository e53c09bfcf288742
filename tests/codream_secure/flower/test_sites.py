"""Sites and a coordinator without Flower: the same bits as a simulation, faults and restarts.

A site is built anew for every message, as Flower does it: all that it knows is in its folder.
"""

import stat

import msgspec
import numpy as np
import pytest
from machines import OPTIONS, PRIVATE

from codream_secure.config import Config
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.flower import wire
from codream_secure.flower.site import Site, SiteSettings
from codream_secure.resolve import resolve
from codream_secure.simulation import Simulation
from protocols.keys import SigningKey


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        {**OPTIONS, "threat_model": "malicious"},
        {**OPTIONS, "method": "codream-fast", "dream_batches": 2, "dreams": 4},
        {**OPTIONS, "local_steps": 3, "adaptive": "jsd", "label_weighting": "confidence"},
        PRIVATE,
    ],
    ids=["plain", "malicious", "fast", "options", "private"],
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
        assert sum(path.name.startswith("batch-") for path in folder.iterdir()) <= 2


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
    assert any("site 3" in line and "shape" in line for line in there.told)


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

    monkeypatch.setattr("codream_secure.client.Client.answer", broken)
    with Site(there.settings(0)) as site:
        site._session = msgspec.structs.replace(site._session, rounds=0)
        monkeypatch.setattr("codream_secure.flower.site.StoredClient.open_bundles", lambda *_: None)
        monkeypatch.setattr("codream_secure.flower.learning.Learning.answer", broken)
        answer = site.handle(wire.Ask(wire.Batch(9, 1), 99, b"", b""))
    assert answer.refused == "ValueError; see the site's log"


def test_what_cannot_run_over_machines_is_said(machines):
    with pytest.raises(UserError, match="always masked"):
        machines().coordinator({**OPTIONS, "secure": False})


def test_own_data_needs_a_public_number(machines, data, tmp_path):
    options = {k: v for k, v in OPTIONS.items() if k != "samples_per_client"}
    resolved = resolve(Config.from_options(options)).options()
    with Site(
        SiteSettings(client=0, folder=tmp_path / "own", load=lambda: data, whole=True)
    ) as site:
        answer = site.handle(wire.Hello(wire.VERSION, bytes(32), resolved))
    assert "--samples-per-client" in answer.refused
    assert np.isfinite(data.x_train).all()
