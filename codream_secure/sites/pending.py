"""What answering changes stays pending until the session's record lists the step (SPEC 6.11).

Otherwise a step that only one site is asked, and that is never finished, would move that site's
state alone; the next common sum would then tell what moved it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from codream_secure.errors import RequestRefused
from codream_secure.sites.history import after
from codream_secure.sites.session import Session
from codream_secure.sites.stored_client import StoredClient
from codream_secure.sites.wire import Entry, Listed, Proof
from codream_secure.storage.state_folder import StateFolder
from protocols.client.states import Confirmed
from protocols.client.step import check_proof
from protocols.messages import ConsistencyProof, decode_set, encode_set
from protocols.params import BatchParams

# Records in the site's folder: the step whose outcome is not known yet; what answering has changed
# by the steps that are known to be finished; the finished steps since the last lesson.
_PENDING, STATE, _FINISHED = "pending", "answered-state", "finished"


class Pending(msgspec.Struct, frozen=True):
    """The last step that the site was asked, until the record says what became of it.

    Attributes:
        step: its number; -1: none.
        request: its name in the record.
        state: what answering changes; empty: nothing.
        on: context of the step; empty until the site has answered.
        survivors: bitmap of the survivor set that the site signed, or was shown.
        proved: whether the site has seen the signatures on that set.
    """

    step: int = -1
    request: bytes = b""
    state: bytes = b""
    on: bytes = b""
    survivors: bytes = b""
    proved: bool = False


def load(folder: StateFolder) -> Pending:
    """Return the pending step of a site."""
    return folder.load_as(_PENDING, Pending) or Pending()


def computed(folder: StateFolder, step: int, request: bytes, state: bytes) -> None:
    """Store what answering a step changes, before the answer is masked."""
    _save(folder, Pending(step, request, state))


def note(folder: StateFolder, client: StoredClient) -> None:
    """Store how far the running step has come, before the site's answer leaves."""
    running, known = client.running, load(folder)
    if running is None or known.step < 0:
        return
    changed = msgspec.structs.replace(known, on=running.on)
    if isinstance(running, Confirmed):
        survivors = encode_set(running.survivors, client.batch.roster)
        changed = msgspec.structs.replace(changed, survivors=survivors)
    if changed != known:
        _save(folder, changed)


def note_proof(folder: StateFolder) -> None:
    """Store that the signatures on the survivor set were checked: the shares are about to leave."""
    if (known := load(folder)).on:
        _save(folder, msgspec.structs.replace(known, proved=True))


class Followed(NamedTuple):
    """What new entries of the record come to, before anything of it is stored.

    Attributes:
        session: with the entries in its digest.
        finished: those that came to a sum.
        state: of the site from now on; empty: as before.
    """

    session: Session
    finished: dict[int, Entry]
    state: bytes


@dataclass(frozen=True, slots=True)
class Follower:
    """Follows the session's record at one site.

    Args:
        folder: of the site.
        batch: gives roster, threshold, threat model and public keys; its number does not matter.
        client: the site's number.
    """

    folder: StateFolder
    batch: BatchParams
    client: int

    def follow(self, session: Session, missed: Sequence[Listed], step: int | None) -> Followed:
        """Check the record's new entries; nothing is stored.

        Args:
            session: as the site has it.
            missed: entries of the record; those that the site has are skipped.
            step: that is asked now; None: a lesson comes.

        Raises:
            RequestRefused: an entry contradicts what the site has done or signed.
            SecAggError: a survivor set or its signatures are not valid.
        """
        pending, finished, state = load(self.folder), self.finished(), b""
        # A site that has answered nothing yet may have lost its folder, and the record lists it.
        fresh = session.last < 0 and pending.step < 0
        for listed in missed:
            entry = listed.entry
            if entry.step <= session.last:
                continue
            if step is not None and entry.step >= step:
                raise RequestRefused("the record lists a step that is not over")
            if self._check(entry, listed.proof, pending, fresh=fresh):
                state = pending.state
            if entry.survivors:
                finished[entry.step] = entry
            session = msgspec.structs.replace(
                session,
                history=after(session.history, entry),
                received=session.received + 1,
                last=entry.step,
            )
        return Followed(session, finished, state)

    def settle(
        self, found: Followed, step: int | None, remember: Callable[[Session], None]
    ) -> None:
        """Store what `follow` found.

        The pending state becomes the site's if the record lists the step as finished with the site
        among the survivors; otherwise it is dropped. A repetition of its step settles nothing. A
        crash on the way leaves the pending step, and the same entries settle it again.

        Args:
            found: by `follow`.
            step: as there.
            remember: stores the session.
        """
        if found.finished != self.finished():
            self.folder.save(_FINISHED, msgspec.msgpack.encode(list(found.finished.values())))
        if found.state:
            self.folder.save(STATE, found.state)
        remember(found.session)
        if step is None or load(self.folder).step < step:
            self.folder.erase(_PENDING)

    def finished(self) -> dict[int, Entry]:
        """Return the finished steps since the last lesson, by number."""
        known = self.folder.load_as(_FINISHED, list[Entry]) or []
        return {entry.step: entry for entry in known}

    def begin_again(self) -> None:
        """Forget finished steps after a lesson."""
        self.folder.erase(_FINISHED)

    def _check(self, entry: Entry, proof: Proof | None, pending: Pending, *, fresh: bool) -> bool:
        """Check an entry; return whether the pending step is one that the site survived."""
        own = pending if pending.step == entry.step else Pending()
        if own.on and entry.request != own.request:
            raise RequestRefused("the record names another request than this site answered")
        if not entry.survivors:
            return False
        survivors = decode_set(entry.survivors, self.batch.roster)
        if len(survivors) < self.batch.threshold:
            raise RequestRefused("the record lists a sum of fewer sites than the threshold")
        if own.survivors and entry.survivors != own.survivors:
            raise RequestRefused("the record lists other survivors than this site signed")
        if own.on and entry.on != own.on:
            raise RequestRefused("the record lists another sum than this site took part in")
        if self.client not in survivors or fresh:
            return False
        if not own.on:
            raise RequestRefused("the record lists this site in a sum that it did not answer")
        if self.batch.malicious and not own.proved:
            check_signatures(self.batch, entry, proof)
        return True


def check_signatures(batch: BatchParams, entry: Entry, proof: Proof | None) -> None:
    """Check that at least t survivors of a step have signed its survivor set (SPEC 6.8).

    Raises:
        RequestRefused: there is no proof.
        SecAggError: a signature is not valid, or there are too few.
    """
    if proof is None:
        raise RequestRefused("the record has no signatures on a sum's survivors")
    survivors = decode_set(entry.survivors, batch.roster)
    signed = Confirmed(entry.key, entry.on, {}, survivors)
    check_proof(batch, signed, ConsistencyProof(proof.signers, proof.signatures))


def _save(folder: StateFolder, pending: Pending) -> None:
    folder.save(_PENDING, msgspec.msgpack.encode(pending))
