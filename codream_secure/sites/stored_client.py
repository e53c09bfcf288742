"""A protocol client whose state lives in a folder (D5)."""

from codream_secure.storage.state_folder import StateFolder
from protocols.client.durable import DurableClient, Reply, last_step
from protocols.client.states import Party, Prepared, Running
from protocols.client.step import Compute, Inputs
from protocols.errors import LocalProtocolError
from protocols.params import BatchParams, Task
from protocols.primitives.keys import Entropy

# Records: one for each key batch; and the session with the last step that it answered.
_BATCH, _STEPS = "batch-", "answered-steps"
_STEP_SIZE = 8  # bytes of a step's number


def end_batches(folder: StateFolder, session: bytes) -> None:
    """Erase the records of all key batches at the end of a run (SPEC 3.9).

    The number of the last step stays: no step may be answered twice.

    Args:
        folder: of one client; no `StoredClient` may be using it.
        session: of the run, 32 bytes; records of other sessions are erased too.

    Raises:
        LocalProtocolError: a record of the session is damaged; nothing was erased.
    """
    _last_answered(folder, session)
    for name in _batches(folder):
        folder.erase(name)


def _last_answered(folder: StateFolder, session: bytes) -> int:
    """Return the last step that the client answered in a session; -1 if none.

    A process may have ended between saving a batch's record and saving `_STEPS`. This brings
    `_STEPS` up to date, so that the batch's record may be erased.
    """
    kept = folder.load(_STEPS) or b""
    known = int.from_bytes(kept[-_STEP_SIZE:], "big") if kept[:-_STEP_SIZE] == session else -1
    records = (folder.load(name) for name in _batches(folder, session))
    last = max([known, *(last_step(record) for record in records if record is not None)])
    if last > known:
        _save_last(folder, session, last)
    return last


def _save_last(folder: StateFolder, session: bytes, step: int) -> None:
    folder.save(_STEPS, session + step.to_bytes(_STEP_SIZE, "big"))


def _batches(folder: StateFolder, session: bytes | None = None) -> list[str]:
    """Return the names of the key batches' records; None: those of all sessions."""
    prefix = _BATCH if session is None else _prefix(session)
    return [name for name in folder.names() if name.startswith(prefix)]


def _prefix(session: bytes) -> str:
    return f"{_BATCH}{session.hex()[:16]}-"


class StoredClient:
    """A `DurableClient` whose every record is on disk before its answer is returned (SPEC 6.7).

    Answers are those of `protocols.client.session.ClientSession`. A key batch that began in the
    folder continues. The folder keeps also the nearest batch before and the nearest one after it,
    because the keys of one are made while another is in use (SPEC 6.2). All other records, and
    those of other sessions, are erased. The first answer to a step in a batch ends and erases all
    other batches (SPEC 3.9). The number of the last step stays for the whole session.

    Args:
        folder: of this client alone.
        party: the client, its batch, and its policy.
        entropy: source of its secrets, os.urandom outside tests.

    Raises:
        LocalProtocolError: a record of the session is damaged, or the batch's record belongs to
            another client or batch; later: the batch's record was erased for another batch.
        PolicyError: the policy does not allow the batch.
    """

    def __init__(self, folder: StateFolder, party: Party, entropy: Entropy) -> None:
        self._folder, self._party = folder, party
        self._session = party.batch.session
        self._name = f"{_prefix(self._session)}{party.batch.batch}"
        self._above = _last_answered(folder, self._session)
        self._erase_all_but({self._name, *self._neighbours()})
        record = folder.load(self._name)
        self._on_disk = record is not None
        self._durable = DurableClient(party, entropy, record)

    @property
    def _client(self) -> DurableClient:
        """The client; an error if its record was erased after it was loaded or saved."""
        if self._on_disk and self._name not in self._folder.names():
            raise LocalProtocolError("the batch is over: its record was erased")
        return self._durable

    @property
    def running(self) -> Running | None:
        """Where the client stands inside a step; None outside of one."""
        state = self._durable.state
        return state.current if isinstance(state, Prepared) else None

    @property
    def batch(self) -> BatchParams:
        """What all parties agreed on for the key batch."""
        return self._party.batch

    def _erase_all_but(self, wanted: set[str]) -> None:
        for name in _batches(self._folder):
            if name not in wanted:
                self._folder.erase(name)

    def _neighbours(self) -> list[str]:
        """Return the records' names of the nearest batch before and after this one, if any."""
        prefix, own = _prefix(self._session), self._party.batch.batch
        others = [name.removeprefix(prefix) for name in _batches(self._folder, self._session)]
        numbers = [int(number) for number in others if number.isdigit()]
        before = [number for number in numbers if number < own]
        after = [number for number in numbers if number > own]
        return [f"{prefix}{n}" for n in (*sorted(before)[-1:], *sorted(after)[:1])]

    def advertise_keys(self) -> bytes:
        """Round 0: the encoded Advertisement."""
        return self._stored(self._client.advertise_keys())

    def draw_graph(self, commitments: bytes) -> bytes:
        """Draw, ring only: from the encoded NonceCommitments to the encoded Nonce."""
        return self._stored(self._client.draw_graph(commitments))

    def share_keys(self, directory: bytes) -> bytes:
        """Round 1: from the encoded KeyDirectory to the encoded ShareBundles."""
        return self._stored(self._client.share_keys(directory))

    def open_bundles(self, delivery: bytes) -> bytes | None:
        """After round 1: an encoded BundleReport if a bundle did not open."""
        return self._stored(self._client.open_bundles(delivery)) or None

    def masked_input(self, request: bytes, task: Task, inputs: Inputs | Compute) -> bytes:
        """Round 2: from the encoded StepRequest to the encoded MaskedInput."""
        before = self._client.state
        reply = self._client.masked_input(request, task, inputs, above=self._answered())
        if self._client.state is not before:
            self._end_others()
        message = self._stored(reply)
        self._remember(task.step)
        return message

    def _end_others(self) -> None:
        """Erase every other batch, prepared ones included.

        This comes before the answer is saved. After a crash between the two, the request is new
        again and the erasing is repeated; in the other order it would be forgotten.
        """
        _last_answered(self._folder, self._session)
        self._erase_all_but({self._name})

    def _answered(self) -> int:
        """Return the last step that was answered with another batch of the session."""
        known = self._folder.answered
        return max([self._above, *(step for name, step in known.items() if name != self._name)])

    def _remember(self, step: int) -> None:
        """Save that a step was answered."""
        known = self._folder.answered
        known[self._name] = max(step, known.get(self._name, -1))
        last = max(self._above, *known.values())
        _save_last(self._folder, self._session, last)

    def confirm(self, survivors: bytes) -> bytes:
        """Consistency round: from the encoded SurvivorSet to the encoded Consistency."""
        return self._stored(self._client.confirm(survivors))

    def unmask(self, data: bytes) -> bytes:
        """Round 3: the encoded UnmaskShares."""
        return self._stored(self._client.unmask(data))

    def end(self) -> None:
        """End the batch and erase its record."""
        self._durable.end()
        _last_answered(self._folder, self._session)
        self._folder.erase(self._name)

    def _stored(self, reply: Reply) -> bytes:
        """Save the client's record; return the message, which may leave from now on."""
        self._folder.save(self._name, reply.record)
        self._on_disk = True
        return reply.message
