"""A site that dreams: the runs it begins, and what a server cannot tell it alone."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from machines import OPTIONS

from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.spec import InputSpec
from codream_secure.sites import wire
from codream_secure.sites.dream_site import DreamSite
from codream_secure.sites.session import SiteSettings


def test_other_data_or_another_version_are_refused_by_name(machines, data):
    there = machines()
    small = data.x_train[:, :, :6, :6]
    spec = InputSpec(1, 6, 6, 10)
    other = replace(data, x_train=small, x_test=small[:10], y_test=data.y_test[:10], spec=spec)
    real = there.settings

    def settings(site):
        found = real(site)
        if site != 3:
            return found
        return SiteSettings(client=3, folder=found.folder, load=lambda: other)

    there.settings = settings
    rounds = list(there.coordinator(OPTIONS).rounds())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    assert any("site 3" in line and "not have the run's shape" in line for line in there.told)


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
    rounds = list(there.coordinator(options).rounds())
    assert [len(one.dreams) for one in rounds] == [1, 1]
    refusals = [line for line in there.told if "was told other things" in line]
    assert refusals
    assert all(line.startswith("site 1 ") for line in refusals)


def test_what_one_site_alone_has_learned_keeps_it_out(machines):
    there = machines(malicious=True)
    coordinator = there.coordinator(OPTIONS | {"threat_model": "malicious"})
    rounds = coordinator.rounds()
    next(rounds)
    with DreamSite(there.settings(2)) as site:
        assert site.handle(wire.Learn(2, ())).data == b"done"
    next(rounds)
    assert any(line.startswith("site 2 refused") for line in there.told)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"secure": False}, "always masked"),
        (
            {"dp_eps": 8.0, "dp_unit": "client", "accept_low_utility": True},
            "needs --threat-model malicious",
        ),
        ({"models": "os:getcwd"}, "not in this site's list models"),
    ],
)
def test_a_site_does_not_rely_on_its_server_s_own_checks(machines, changed, told):
    there = machines()
    run = there.coordinator(OPTIONS)._run
    with DreamSite(there.settings(0)) as site:
        answer = site.handle(
            wire.Hello(wire.VERSION, bytes(32), {**run.options, **changed}, run.spec, ())
        )
    assert told in answer.refused


@pytest.mark.parametrize("largest", [5, 9, 11])
def test_labels_beyond_the_run_s_classes_change_no_answer(machines, data, caplog, largest):
    """The attack: a site refused runs of fewer classes than its largest label, of one example."""
    there = machines()
    labels = np.minimum(data.y_train, 5)
    labels[7] = largest
    spec = replace(data.spec, classes=largest + 1)
    there.data = replace(data, y_train=labels, y_test=np.minimum(data.y_test, 5), spec=spec)
    run = there.coordinator(OPTIONS)._run
    message = wire.Hello(wire.VERSION, bytes(32), run.options, (1, 8, 8, 8), ())
    with DreamSite(there.settings(0)) as site:
        answer = site.handle(message)
    assert not answer.refused
    assert wire.decode_present(answer.data).spec == (1, 8, 8, 8)
    assert ("labels up to" in caplog.text) == (largest > 7)


def test_a_site_that_knows_its_classes_refuses_others_before_it_reads_data(machines):
    there = machines()
    run = there.coordinator(OPTIONS)._run
    settings = replace(there.settings(0), classes=7, load=lambda: pytest.fail("data were read"))
    with DreamSite(settings) as site:
        answer = site.handle(wire.Hello(wire.VERSION, bytes(32), run.options, run.spec, ()))
    assert "another number of classes" in answer.refused


def test_a_label_beyond_the_configured_classes_stays_in_the_site_s_log(machines, caplog):
    there = machines()
    run = there.coordinator(OPTIONS)._run
    with DreamSite(replace(there.settings(0), classes=7)) as site:
        answer = site.handle(wire.Hello(wire.VERSION, bytes(32), run.options, (1, 8, 8, 7), ()))
    assert answer.refused == "the site failed; see its log"
    assert "label 9 in data that are configured for 7 classes" in caplog.text


def test_own_data_needs_a_public_number(machines, data, tmp_path, caplog):
    options = {k: v for k, v in OPTIONS.items() if k != "samples_per_client"}
    resolved = resolve(Config.from_options(options)).options()
    with DreamSite(
        SiteSettings(client=0, folder=tmp_path / "own", load=lambda: data, whole=True)
    ) as site:
        answer = site.handle(wire.Hello(wire.VERSION, bytes(32), resolved, (1, 8, 8, 10)))
    # The text may quote data; it is in the site's own log.
    assert answer.refused == "the site failed; see its log"
    assert "--samples-per-client" in caplog.text
    assert np.isfinite(data.x_train).all()
