"""Records on disk: whole or not at all, and one process at a time."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from codream_secure.errors import UserError, WriteError
from codream_secure.storage.state_folder import StateFolder


class CrashError(Exception):
    """The process ends here."""


def test_an_unfinished_record_is_gone_when_the_folder_is_opened(tmp_path, monkeypatch):
    def crash(*_):
        raise CrashError

    with StateFolder(tmp_path) as folder, monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        patch.setattr(os, "unlink", crash)
        with pytest.raises(CrashError):
            folder.save("record", b"a secret")
    assert list(tmp_path.glob("record.*.part"))
    StateFolder(tmp_path).close()
    assert not list(tmp_path.glob("record.*.part"))


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_what_is_added_is_there_and_a_failure_leaves_the_record_as_it_was(
    tmp_path, monkeypatch, call
):
    with StateFolder(tmp_path / "state") as folder:
        for line in (b"one", b"two" * 100):
            folder.add("log", line)
        before = folder.load("log")

        def fails(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            with pytest.raises(WriteError, match="make room"):
                folder.add("log", b"three")
        assert folder.load("log") == before
        folder.add("log", b"four")
        assert (tmp_path / "state" / "log").stat().st_mode & 0o777 == 0o600
    with StateFolder(tmp_path / "state") as folder:
        assert folder.lines("log") == [b"one", b"two" * 100, b"four"]
        folder.erase("log")
        folder.add("log", b"five")
        assert folder.lines("log") == [b"five"]


def test_two_processes_cannot_use_one_folder(tmp_path):
    code = f"""
import sys, pathlib
from codream_secure.storage.state_folder import StateFolder
folder = StateFolder(pathlib.Path({str(tmp_path)!r}))
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="in use by another process"):
            StateFolder(tmp_path)
        other.kill()
        other.wait()
    StateFolder(tmp_path).close()


def test_who_has_patience_waits_for_the_other_process(tmp_path):
    first = StateFolder(tmp_path)
    leaving = threading.Timer(0.3, first.close)
    leaving.start()
    StateFolder(tmp_path, patience=30.0).close()
    leaving.join()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot use the state folder"):
        StateFolder(tmp_path / "file")


def test_a_record_is_whole_whenever_the_process_is_killed(tmp_path):
    code = f"""
import pathlib
from codream_secure.storage.state_folder import StateFolder
folder = StateFolder(pathlib.Path({str(tmp_path)!r}))
number = 0
while True:
    folder.save("record", number.to_bytes(4, "big") * 5000)
    number += 1
    if number == 3: print("going", flush=True)
"""
    for delay in (0.0, 0.003, 0.011):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"going\n"
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        with StateFolder(tmp_path) as folder:
            data = folder.load("record")
            assert data == data[:4] * 5000
            assert int.from_bytes(data[:4], "big") >= 2
