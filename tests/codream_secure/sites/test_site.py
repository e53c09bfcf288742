"""What every site does: its folder, its refusals, and terms that it does not give up."""

import stat
from dataclasses import astuple

import msgspec
import pytest
from machines import OPTIONS

from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.sites import wire
from codream_secure.sites.dream_site import DreamSite
from codream_secure.sites.session import SiteSettings
from codream_secure.sites.site import Site
from protocols.primitives.keys import SigningKey


def test_a_folder_is_its_owners_alone_and_holds_no_secret_of_a_finished_step(machines):
    there = machines()
    list(there.coordinator(OPTIONS).rounds())
    for site in range(4):
        folder = there.folder / f"site-{site}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
        assert not [path for path in folder.iterdir() if path.name.startswith("batch-")]


def test_a_site_keeps_few_records_whatever_it_is_asked(machines):
    there = machines()
    list(there.coordinator(OPTIONS).rounds())
    for number in (50, 90, 20, 70, 60, 80, 10):
        with DreamSite(there.settings(0)) as site:
            assert not site.handle(wire.Advertise(wire.Batch(number, 2))).refused
    names = [path.name for path in (there.folder / "site-0").iterdir()]
    assert len([name for name in names if name.startswith("batch-")]) <= 3


def test_before_a_session_nothing_is_answered(machines):
    there = machines()
    with DreamSite(there.settings(0)) as site:
        answer = site.handle(wire.Advertise(wire.Batch(0, 3)))
    assert "no session has begun" in answer.refused


def test_a_site_refuses_what_is_no_text(tmp_path):
    settings = SiteSettings(client=0, folder=tmp_path, load=lambda: None)
    with Site(settings, summand=None) as site:
        answer = wire.decode_answer(site.handle_bytes(b"\x91\xa1\xff"))
    assert "not a message of version" in answer.refused


def test_an_error_that_may_quote_data_is_told_by_its_name_alone(machines, data, monkeypatch):
    there = machines()
    list(there.coordinator(OPTIONS).rounds())

    def broken(*_):
        raise ValueError(f"pixel {data.x_train[0, 0, 3, 3]}")

    monkeypatch.setattr("codream_secure.federation.client.Client.answer", broken)
    with DreamSite(there.settings(0)) as site:
        site._session = msgspec.structs.replace(site._session, rounds=0)
        monkeypatch.setattr("codream_secure.sites.site.StoredClient.open_bundles", lambda *_: None)
        monkeypatch.setattr("codream_secure.sites.stored_learner.StoredLearner.answer", broken)
        answer = site.handle(wire.Ask(wire.Batch(9, 1), 99, b"", site._session.history))
    assert answer.refused == "the site failed; see its log"


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
    with DreamSite(there.settings(0)) as site:
        answer = site.handle(wire.Hello(wire.VERSION, bytes(32), options, spec, roster))
    assert told in answer.refused


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
    rounds = list(there.coordinator({**OPTIONS, "threat_model": "malicious"}).rounds())
    assert any("site 1" in line for line in there.told)
    assert [len(one.dreams) for one in rounds] == [1, 1]


@pytest.mark.parametrize(
    ("client", "key", "told"), [(1, 0, "that of site 0"), (0, 1, "that of another signing key")]
)
def test_a_state_folder_of_another_identity_is_refused_in_one_line(machines, client, key, told):
    """What was answered and spent belongs to one identity; in another folder it would be gone."""
    there = machines(malicious=True)
    with DreamSite(there.settings(0)):
        pass
    wrong = SiteSettings(
        client=client,
        folder=there.folder / "site-0",
        load=lambda: None,
        identity=there.keys[key],
        roster=there.roster,
    )
    with pytest.raises(UserError, match=told) as caught:
        DreamSite(wrong)
    assert "\n" not in str(caught.value)
    with DreamSite(there.settings(0)) as site:  # its own opens it as before
        who = wire.Who(wire.VERSION, bytes(32), bytes(32))
        assert not site.handle(who).refused


def test_a_site_may_get_its_key_later(machines):
    there = machines(malicious=True)
    own = there.settings(0)
    with DreamSite(SiteSettings(client=0, folder=own.folder, load=lambda: None)):
        pass
    with DreamSite(own):
        pass
    with pytest.raises(UserError, match="another signing key"):
        DreamSite(SiteSettings(client=0, folder=own.folder, load=lambda: None))
