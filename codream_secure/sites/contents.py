"""A site's record of what it has answered, as hashes: it holds over all sessions (D1).

Otherwise a server asks the same in fresh sessions, once with a victim and once without it, and the
difference of the two sums is the victim's exact answer.
"""

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from codream_secure.aggregation.requests import AskedOfClient, DreamRequest, LabelRequest
from codream_secure.errors import RequestRefused
from codream_secure.sites import site_log, weights
from codream_secure.storage.state_folder import StateFolder

RECORD: Final = "contents"
MOST = 100_000
_HASH, _NUMBER = 32, 8
_SIZE = _HASH + _NUMBER


def of_request(request: AskedOfClient) -> bytes:
    """Return what a request is about, without its counters; empty if it may be asked again.

    Sums with noise may be: their budget limits them, and their noise is fresh. So may accuracies,
    which come with no broadcast.
    """
    if isinstance(request, DreamRequest):
        alike = msgspec.structs.replace(request, round=0, batch=0, dream_step=0)
        return msgspec.msgpack.encode(alike)
    if isinstance(request, LabelRequest) and request.labels.noisy is None:
        return msgspec.msgpack.encode(msgspec.structs.replace(request, round=0, batch=0))
    return b""


def admit(folder: StateFolder, content: bytes) -> None:
    """Refuse what an earlier session asked, and store what this one asks.

    Within a session the site's other rules hold: an aborted step may be asked again there.

    Args:
        folder: of the site.
        content: what is asked, without counters; empty is always admitted.

    Raises:
        RequestRefused: it was answered in an earlier session, or there is no more room.
    """
    if not content:
        return
    kept = folder.load(RECORD) or b""
    key = hashlib.sha256(content).digest()
    # The number is the site's own. A server could choose a session's name twice.
    number = len(site_log.entries(folder)).to_bytes(_NUMBER, "big")
    whole = len(kept) // _SIZE * _SIZE  # a process that died left part of an entry
    start = kept.find(key)
    while start % _SIZE and start >= 0:
        start = kept.find(key, start + 1)
    if 0 <= start < whole:
        if kept[start + _HASH : start + _SIZE] != number:
            raise RequestRefused(
                "an earlier session asked the same of this site (D1); a run that repeats "
                "another, with the same seed, needs `deploy forget` of the site's operator"
            )
        return
    if whole >= MOST * _SIZE:
        raise RequestRefused(
            f"this site remembers {MOST} requests and forgets none by itself: `deploy forget`"
        )
    folder.extend(RECORD, key + number, whole)


def forget(path: Path) -> int:
    """Clear what a site remembers of requests and of its weight; return how many requests.

    Raises:
        UserError: there is no such folder, or a process uses it.
    """
    with StateFolder.existing(path) as folder:
        held = len(folder.load(RECORD) or b"") // _SIZE
        folder.erase(RECORD)
        folder.erase(weights.RECORD)
    return held
