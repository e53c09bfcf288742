"""What a site has answered belongs to its identity: no session makes it answer that again."""

import msgspec
import numpy as np
import pytest
from aggregators import dream_request, label_request
from machines import OPTIONS

from codream_secure.aggregation.requests import (
    EvaluateRequest,
    NoisyTerms,
    StatisticsRequest,
)
from codream_secure.cli.main import cli
from codream_secure.errors import RequestRefused, UserError
from codream_secure.sites import contents, site_log, wire
from codream_secure.sites.dream_site import DreamSite
from codream_secure.storage.state_folder import StateFolder

DREAMS = dream_request()
SHORT = OPTIONS | {"rounds": 1, "dream_steps": 1, "warmup_epochs": 0}


def test_fresh_sessions_with_and_without_a_victim_tell_nothing_of_it(machines):
    """The attack: the difference of two sums over the same dreams is one site's exact input."""
    there = machines()
    list(there.coordinator(SHORT).rounds())
    there.fault = lambda _number, site, _message: "before" if site == 3 else None
    second = there.coordinator(SHORT)
    list(second.rounds())
    # Gradients at the same dreams are not summed again: there is nothing to subtract.
    assert second.aggregator.aborted_steps == 1
    told = [line for line in there.told if "an earlier session asked the same" in line]
    assert {line[:6] for line in told} == {"site 0", "site 1", "site 2"}
    with StateFolder(there.folder / "site-0") as folder:
        first, later = site_log.entries(folder)
    assert "DreamRequest" in first.answered
    assert "DreamRequest" not in later.answered


def test_a_session_begun_again_under_its_old_name_is_another_one(machines):
    there = machines()
    run = there.coordinator(SHORT)._run
    hello = [
        wire.Hello(wire.VERSION, bytes([number]) * 32, run.options, run.spec, run.identities)
        for number in (1, 2)
    ]
    with DreamSite(there.settings(0)) as site:
        for expected, message in ((True, hello[0]), (True, hello[0]), (False, hello[1])):
            assert not site.handle(message).refused
            if expected:
                contents.admit(site._folder, b"dreams")
        assert not site.handle(hello[0]).refused
        with pytest.raises(RequestRefused, match="an earlier session asked the same"):
            contents.admit(site._folder, b"dreams")


def test_counters_make_no_other_content_and_one_pixel_does():
    counted = msgspec.structs.replace(DREAMS, round=7, batch=8, dream_step=9)
    assert contents.of_request(counted) == contents.of_request(DREAMS)
    other = msgspec.structs.replace(DREAMS, dreams=bytes(31) + b"1")
    assert contents.of_request(other) != contents.of_request(DREAMS)
    labels = label_request()
    again = msgspec.structs.replace(labels, round=2, batch=5)
    assert contents.of_request(again) == contents.of_request(labels)
    assert contents.of_request(labels) != contents.of_request(DREAMS)


def test_accuracies_and_sums_with_noise_are_no_content():
    """What SECURITY says of them: every session may ask them again, within their own limits."""
    assert contents.of_request(EvaluateRequest(3, 1)) == b""
    noise = NoisyTerms(32, 9, 4, 3, 255, "skellam")
    labels = label_request()
    noisy = msgspec.structs.replace(labels.labels, noisy=noise)
    assert contents.of_request(msgspec.structs.replace(labels, labels=noisy)) == b""
    assert contents.of_request(StatisticsRequest(3, (1, 8, 8, 10), noise)) == b""


def test_a_full_record_refuses_and_forgets_nothing_by_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contents, "MOST", 3)
    with StateFolder(tmp_path) as folder:
        for number in (1, 2, 3, 2, 1):
            contents.admit(folder, bytes([number]))
        before = folder.load(contents.RECORD)
        with pytest.raises(RequestRefused, match="remembers 3 requests and forgets none"):
            contents.admit(folder, b"4")
        assert folder.load(contents.RECORD) == before
        contents.admit(folder, b"")  # what may always be asked
        assert np.frombuffer(before, np.uint8).size == 3 * 40
    cli(["deploy", "forget", str(tmp_path), "--yes"], standalone_mode=False)
    assert "3 requests forgotten; they can be asked again" in capsys.readouterr().out
    with StateFolder(tmp_path) as folder:
        contents.admit(folder, b"4")
        assert site_log.entries(folder) == []
    with pytest.raises(UserError, match="is no state folder"):
        contents.forget(tmp_path / "none")
