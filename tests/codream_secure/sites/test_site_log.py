"""A site's own record of its sessions, and how many of them it admits."""

import msgspec
import pytest
from machines import OPTIONS, PRIVATE

from codream_secure.cli.main import cli
from codream_secure.errors import UserError
from codream_secure.sites import site_log, wire
from codream_secure.sites.dream_site import DreamSite
from codream_secure.storage.state_folder import StateFolder

SHORT = OPTIONS | {"rounds": 1, "warmup_epochs": 0}


def hello(there, number, options=SHORT):
    run = there.coordinator(options)._run
    message = wire.Hello(wire.VERSION, bytes([number]) * 32, run.options, run.spec, run.identities)
    with DreamSite(there.settings(0)) as site:
        return site.handle(message).refused


def logged(there, site=0):
    with StateFolder(there.folder / f"site-{site}") as folder:
        return site_log.entries(folder)


@pytest.mark.parametrize("limit", ["sessions_per_day", "sessions_total"])
def test_a_server_cannot_begin_session_after_session(machines, limit):
    """Without a limit, fresh sessions with and without a victim give its exact input."""
    there = machines(policy=f"{limit} = 2")
    assert [hello(there, number) for number in (1, 2, 2)] == ["", "", ""]
    refused = hello(there, 3)
    assert f"2 sessions have begun and {limit} = 2" in refused
    assert (bytes([3]) * 32).hex() in refused
    # The operator lists it, and it alone.
    name = (bytes([3]) * 32).hex()
    (there.folder / "policy.toml").write_text(f'{limit} = 2\nsessions = ["{name}"]')
    assert hello(there, 3) == ""
    assert limit in hello(there, 4)


def test_yesterday_s_sessions_count_in_total_alone(machines, monkeypatch):
    there = machines(policy="sessions_per_day = 1\nsessions_total = 2")
    assert hello(there, 1) == ""
    assert "sessions_per_day" in hello(there, 2)
    now = site_log.time.time()
    monkeypatch.setattr(site_log.time, "time", lambda: now + 90_000)
    assert hello(there, 2) == ""
    monkeypatch.setattr(site_log.time, "time", lambda: now + 180_000)
    assert "sessions_total" in hello(there, 3)


def test_the_log_says_what_has_left_the_site(machines, capsys):
    there = machines(malicious=True)
    coordinator = there.coordinator(SHORT | {"threat_model": "malicious"})
    list(coordinator.rounds())
    (one,) = logged(there)
    assert one.session == coordinator.session
    assert (one.clients, one.threshold, one.model, one.epsilon) == (4, 3, "malicious", 0.0)
    # What the site was asked, counted from the messages that it got.
    asked = [m for s, m in there.messages if s == 0 and isinstance(m, wire.Ask)]
    assert sum(one.answered.values()) == len(asked) == 4
    assert one.refused == one.repaired == 0
    # The same request again is not counted again; a refusal is, and so is a repair.
    with DreamSite(there.settings(0)) as site:
        site.handle(asked[0])
        site.handle(wire.Learn(9, ()))
        site_log.record(site._folder, repaired=2)
    (later,) = logged(there)
    assert later.answered == one.answered
    assert (later.refused > 0, later.repaired) == (True, 2)
    cli(["deploy", "log", str(there.folder / "site-0")], standalone_mode=False)
    told = capsys.readouterr().out
    assert one.session.hex() in told
    assert f"roster {one.roster[:16]}" in told
    assert "DreamRequest 2" in told
    assert "repaired 2" in told


def test_the_log_outlives_sessions_and_has_their_epsilon(machines):
    there = machines(policy="epsilon = 20.0\ndelta = 1e-3")
    private = {n: v for n, v in PRIVATE.items() if n != "seed"} | {"statistics_eps": 0.0}
    assert [hello(there, number, private) for number in (1, 2)] == ["", ""]
    assert [(one.epsilon, one.delta) for one in logged(there)] == [(8.0, 1e-5)] * 2


def test_no_folder_or_a_damaged_log_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is no state folder"):
        site_log.lines(tmp_path / "none")
    with StateFolder(tmp_path) as folder:
        folder.save(site_log.RECORD, msgspec.msgpack.encode(3))
    with pytest.raises(UserError, match="is damaged"):
        site_log.lines(tmp_path)
