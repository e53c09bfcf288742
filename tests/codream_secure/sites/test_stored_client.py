"""A client in a folder: one answer to each message, whenever its process ends."""

import os
import stat
from dataclasses import replace

import numpy as np
import pytest

from codream_secure.sites.stored_client import StoredClient, end_batches
from codream_secure.storage.state_folder import StateFolder
from protocols.client.states import Party
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.params import BatchParams, Section, Task
from protocols.policy import Policy
from protocols.primitives.keys import SigningKey
from protocols.server.session import ServerSession

ROSTER = (0, 1, 2, 3)


SECTION = Section(name="g", length=5, maximum=15, clip=1.0)


def task(step):
    return Task(step=step, kind="sum", sections=(SECTION,), broadcast_digest=bytes(32))


def codes(client, step):
    return {"g": np.full(5, (client + step) % 16, np.uint32)}


class CrashError(Exception):
    """The process ends here."""


RECORD = f"batch-{'00' * 8}-1"


class Nodes:
    """Clients that are made anew from their folders for every single message."""

    def __init__(self, root, *, malicious):
        keys = {u: SigningKey.from_private_bytes(bytes([u + 1] * 32)) for u in ROSTER}
        self.batch = BatchParams(
            session=bytes(32),
            batch=1,
            steps=3,
            roster=ROSTER,
            threshold=3,
            threat_model="malicious" if malicious else "semi-honest",
            identities=tuple(k.public for k in keys.values()) if malicious else (),
        )
        self.parties = {
            u: Party(
                self.batch,
                u,
                keys[u] if malicious else None,
                Policy(min_honest=2) if malicious else None,
            )
            for u in ROSTER
        }
        self.root = root
        self.server = ServerSession(self.batch)

    def next_batch(self):
        """Exchange the keys of the next batch; returns the server of the one before."""
        before = self.server
        self.batch = replace(self.batch, batch=self.batch.batch + 1)
        self.parties = {u: replace(p, batch=self.batch) for u, p in self.parties.items()}
        self.server = ServerSession(self.batch)
        self.exchange_keys()
        return before

    def names(self, client):
        with StateFolder(self.root / str(client)) as folder:
            return folder.names()

    def ask(self, client, call):
        with StateFolder(self.root / str(client)) as folder:
            return call(StoredClient(folder, self.parties[client], os.urandom))

    def round(self, waiting, call):
        for u in waiting:
            reply = self.ask(u, lambda client, u=u: call(u, client))
            if reply is not None:
                self.server.receive(u, reply)

    def exchange_keys(self):
        self.round(ROSTER, lambda u, client: client.advertise_keys())
        keys = self.server.end_round()
        self.round(keys, lambda u, client: client.share_keys(keys[u]))
        bundles = self.server.end_round()
        self.round(bundles, lambda u, client: client.open_bundles(bundles[u]))

    def step(self, number):
        wanted = task(number)
        requests = self.server.begin_step(wanted)
        self.round(
            requests,
            lambda u, client: client.masked_input(requests[u], wanted, codes(u, number)),
        )
        told = self.server.end_round()
        if self.batch.malicious:
            self.round(told, lambda u, client: client.confirm(told[u]))
            told = self.server.end_round()
        self.round(told, lambda u, client: client.unmask(told[u]))
        self.server.end_round()
        return self.server.result.totals["g"].tolist()


@pytest.mark.parametrize("malicious", [False, True])
def test_a_process_per_message_gives_the_exact_sums(tmp_path, malicious):
    nodes = Nodes(tmp_path, malicious=malicious)
    nodes.exchange_keys()
    for number in range(3):
        assert nodes.step(number) == [sum((u + number) % 16 for u in ROSTER)] * 5


def test_an_answer_that_was_stored_and_not_sent_is_sent_again_unchanged(tmp_path):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    request = nodes.server.begin_step(task(0))[1]
    sent = nodes.ask(1, lambda c: c.masked_input(request, task(0), codes(1, 0)))
    again = nodes.ask(1, lambda c: c.masked_input(request, task(0), codes(1, 9)))
    assert again == sent
    with pytest.raises(RemoteProtocolError, match="another request"):
        nodes.ask(1, lambda c: c.masked_input(request, task(5), codes(1, 0)))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_answer_that_was_not_stored_never_left_and_the_client_goes_on(
    tmp_path, monkeypatch, call
):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    request = nodes.server.begin_step(task(0))[1]

    def crash(*arguments):
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with pytest.raises(CrashError):
            nodes.ask(1, lambda c: c.masked_input(request, task(0), codes(1, 0)))
    assert nodes.ask(1, lambda c: c.masked_input(request, task(0), codes(1, 0)))


def test_records_are_for_the_owner_alone_and_gone_with_their_batch(tmp_path):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    home = tmp_path / "1"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}
    with StateFolder(home) as folder:
        assert folder.names() == (RECORD,)
        StoredClient(folder, nodes.parties[1], os.urandom).end()
        assert folder.names() == ()
        folder.save("batch-0123456789abcdef-7", b"of an older session")
        folder.save("budget", b"of something else")
        StoredClient(folder, nodes.parties[1], os.urandom)
        assert folder.names() == ("budget",)


def test_the_record_of_a_batch_outlives_the_beginning_of_the_next_one(tmp_path):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    later = replace(nodes.batch, batch=2)
    with StateFolder(tmp_path / "1") as folder:
        first = nodes.parties[1]
        sent = StoredClient(folder, Party(later, 1), os.urandom).advertise_keys()
        assert sent
        assert RECORD in folder.names()
        StoredClient(folder, Party(replace(nodes.batch, batch=3), 1), os.urandom)
        assert RECORD not in folder.names()
    assert first.batch == nodes.batch


def test_a_step_is_answered_once_in_a_session_across_batches_and_restarts(tmp_path):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    request = nodes.server.begin_step(task(4))
    nodes.round(request, lambda u, c: c.masked_input(request[u], task(4), codes(u, 4)))
    nodes.next_batch()
    again = nodes.server.begin_step(task(4))
    with pytest.raises(RemoteProtocolError, match="step number does not grow"):
        nodes.ask(1, lambda c: c.masked_input(again[1], task(4), codes(1, 4)))
    nodes.server.abandon_step()
    after = nodes.server.begin_step(task(5))
    assert nodes.ask(1, lambda c: c.masked_input(after[1], task(5), codes(1, 5)))


@pytest.fixture
def dying(monkeypatch):
    """Returns a function: do something, and die at the first save, or erasure, of such a name."""

    def at(call, ending, act):
        real = getattr(StateFolder, call)

        def crash(self, name, *data):
            if name.endswith(ending):
                raise CrashError
            return real(self, name, *data)

        with monkeypatch.context() as patch:
            patch.setattr(StateFolder, call, crash)
            with pytest.raises(CrashError):
                act()

    return at


def ask_step(nodes, number, client=1):
    request = nodes.server.begin_step(task(number))[client]
    return lambda: nodes.ask(client, lambda c: c.masked_input(request, task(number), codes(1, 0)))


def test_a_step_is_answered_once_though_the_process_ends_before_its_number_is_stored(
    tmp_path, dying
):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    dying("save", "answered-steps", ask_step(nodes, 7))
    assert "answered-steps" not in nodes.names(1)
    nodes.next_batch()
    nodes.next_batch()
    assert RECORD not in nodes.names(1)
    with pytest.raises(RemoteProtocolError, match="step number does not grow"):
        ask_step(nodes, 7)()
    nodes.server.abandon_step()
    assert ask_step(nodes, 8)()


def nodes_in_the_next_batch(folder):
    """Return nodes, what ends a masked step for client 1, and its party of before the batch."""
    nodes = Nodes(folder, malicious=False)
    nodes.exchange_keys()
    wanted = task(1)
    requests = nodes.server.begin_step(wanted)
    nodes.round(requests, lambda u, c: c.masked_input(requests[u], wanted, codes(u, 1)))
    survivors, first = nodes.server.end_round()[1], nodes.parties[1]
    nodes.next_batch()
    return nodes, survivors, first


def test_a_batch_is_over_when_a_step_is_answered_in_another_one(tmp_path):
    nodes, survivors, first = nodes_in_the_next_batch(tmp_path)
    nodes.step(2)
    assert nodes.names(1) == ("answered-steps", f"batch-{'00' * 8}-2")
    with (
        StateFolder(tmp_path / "1") as folder,
        pytest.raises(LocalProtocolError, match="needs Masked"),
    ):
        StoredClient(folder, first, os.urandom).unmask(survivors)


def test_a_client_in_memory_does_not_outlive_its_record(tmp_path):
    nodes, survivors, first = nodes_in_the_next_batch(tmp_path)
    request = nodes.server.begin_step(task(2))[1]
    with StateFolder(tmp_path / "1") as folder:
        old = StoredClient(folder, first, os.urandom)
        new = StoredClient(folder, nodes.parties[1], os.urandom)
        new.masked_input(request, task(2), codes(1, 2))
        with pytest.raises(LocalProtocolError, match="the batch is over"):
            old.unmask(survivors)
        assert RECORD not in folder.names()


@pytest.mark.parametrize("call", ["save", "erase"])
def test_no_answer_is_on_disk_beside_an_older_batch_wherever_the_process_ends(
    tmp_path, dying, call
):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    dying("save", "answered-steps", ask_step(nodes, 1))
    nodes.next_batch()
    # Dies when it stores the answer, or before, when it erases the batch that knows of step 1.
    answer = ask_step(nodes, 2)
    dying(call, "-2" if call == "save" else "-1", answer)
    assert "answered-steps" in nodes.names(1)
    assert (RECORD in nodes.names(1)) == (call == "erase")
    sent = answer()
    assert answer() == sent
    assert nodes.names(1) == ("answered-steps", f"batch-{'00' * 8}-2")


def test_an_answer_that_is_sent_again_leaves_the_keys_that_were_made_since(tmp_path):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    answer = ask_step(nodes, 0)
    sent = answer()
    later = f"batch-{'00' * 8}-2"
    with StateFolder(tmp_path / "1") as folder:
        party = Party(replace(nodes.batch, batch=2), 1)
        StoredClient(folder, party, os.urandom).advertise_keys()
    assert answer() == sent
    assert later in nodes.names(1)
    nodes.server.abandon_step()
    ask_step(nodes, 1)()
    assert later not in nodes.names(1)


@pytest.mark.parametrize("ends", ["end", "end_batches"])
def test_the_last_step_is_known_after_the_end(tmp_path, dying, ends):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    dying("save", "answered-steps", ask_step(nodes, 7))
    with StateFolder(tmp_path / "1") as folder:
        folder.save("batch-0123456789abcdef-7", b"of an older session")
        folder.save("budget", b"of something else")
        if ends == "end":
            StoredClient(folder, nodes.parties[1], os.urandom).end()
        else:
            end_batches(folder, nodes.batch.session)
        assert folder.names() == ("answered-steps", "budget")
    nodes.next_batch()
    with pytest.raises(RemoteProtocolError, match="step number does not grow"):
        ask_step(nodes, 7)()


def test_nothing_is_erased_before_the_last_step_is_stored(tmp_path, dying):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    dying("save", "answered-steps", ask_step(nodes, 7))
    with StateFolder(tmp_path / "1") as folder:
        dying("save", "answered-steps", lambda: end_batches(folder, nodes.batch.session))
    assert nodes.names(1) == (RECORD,)


def test_a_damaged_record_is_refused(tmp_path):
    nodes = Nodes(tmp_path, malicious=False)
    nodes.exchange_keys()
    record = tmp_path / "1" / RECORD
    record.write_bytes(record.read_bytes()[:-1])
    with pytest.raises(LocalProtocolError, match="damaged"):
        nodes.ask(1, lambda c: c.end())
