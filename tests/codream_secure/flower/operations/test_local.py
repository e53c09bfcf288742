"""`codream-secure deploy local` without processes."""

import os
import signal

import pytest


def test_local_wants_a_site_each_or_none(run):
    code, _, err = run("deploy", "local", "--clients", "3", "--site", 'data="a.npz"')
    assert (code, "one each, or none" in err) == (2, True)


def test_local_does_not_touch_a_folder_that_is_there(run, tmp_path):
    (tmp_path / "there").mkdir()
    code, _, err = run("deploy", "local", "--out", "there")
    assert code == 2
    assert "is there already" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_local_stops_what_it_started_when_it_is_told_to_end(run, monkeypatch, number):
    stopped = []

    class Started:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            stopped.append(True)

        def run(self):
            os.kill(os.getpid(), number)
            raise AssertionError("it goes on")

    monkeypatch.setattr("codream_secure.flower.operations.local.Local", Started)
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = {one: signal.signal(one, signal.SIG_DFL) for one in ends}
    try:
        code, *_ = run("deploy", "local")
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert code == 128 + number
    assert stopped == [True]
