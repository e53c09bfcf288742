"""A site's own record of its sessions: it limits how many begin, and tells what has left the site.

It outlives sessions and stays in the state folder; `codream-secure deploy log` prints it.
"""

import time
from pathlib import Path
from typing import Final

import msgspec

from codream_secure.errors import RequestRefused, UserError
from codream_secure.sites.policy import SitePolicy
from codream_secure.sites.session import Session
from codream_secure.storage.state_folder import StateFolder

RECORD: Final = "log"
_DAY = 86_400.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One session as its site remembers it.

    Attributes:
        session: 32 bytes that the server chose.
        began: seconds since 1970, by the site's own clock.
        model, clients, threshold: the terms.
        roster: digest of the public keys, in hex; empty without a roster. Nobody else is known to
            have asked.
        answered: how many sums the site answered, by kind.
        repaired, refused: how many answers it repaired, and messages it refused.
        returns: how often sites that were out of a sum were back in a later one.
        differences: sums that differ by one site from an earlier one about similar dreams.
        epsilon, delta: charged for the whole session; 0: without DP.
        unit: whom epsilon protects, "example" or "client".
    """

    session: bytes
    began: float
    model: str
    clients: int
    threshold: int
    roster: str = ""
    answered: dict[str, int] = {}
    repaired: int = 0
    refused: int = 0
    epsilon: float = 0.0
    delta: float = 0.0
    returns: int = 0
    differences: int = 0
    unit: str = "example"


def entries(folder: StateFolder) -> list[Entry]:
    """Return the sessions of a site, the oldest first."""
    return folder.load_as(RECORD, list[Entry]) or []


def check_admission(folder: StateFolder, policy: SitePolicy, session: bytes) -> None:
    """Refuse one session more than the policy admits, unless the operator has listed it.

    Raises:
        RequestRefused: the limit for a day or in total is reached; the reason names the session.
    """
    if session.hex() in policy.sessions:
        return
    known, today = entries(folder), time.time() - _DAY
    for name, count in (
        ("sessions_per_day", sum(one.began > today for one in known)),
        ("sessions_total", len(known)),
    ):
        if count >= getattr(policy, name):
            raise RequestRefused(
                f"{count} sessions have begun and {name} = {getattr(policy, name)}; to admit this "
                f"one, the site's operator adds {session.hex()} to sessions in the policy"
            )


def begin(
    folder: StateFolder,
    session: Session,
    *,
    roster: str = "",
    epsilon: float = 0.0,
    delta: float = 0.0,
    unit: str = "example",
) -> None:
    """Store that a session begins; arguments as the attributes of `Entry`."""
    terms = session.terms
    new = Entry(
        session=session.session,
        began=time.time(),
        model=terms.threat_model,
        clients=terms.clients,
        threshold=terms.threshold,
        roster=roster,
        epsilon=epsilon,
        delta=delta,
        unit=unit,
    )
    _save(folder, [*entries(folder), new])


def record(
    folder: StateFolder,
    *,
    kind: str = "",
    answered: int = 0,
    refused: int = 0,
    repaired: int = 0,
    returns: int = 0,
    differences: int = 0,
) -> None:
    """Add to the counts of the newest session; without a session nothing is stored.

    Args:
        folder: of the site.
        kind: of the sum that was answered.
        answered: answers more.
        refused: refusals more.
        repaired: repaired answers more.
        returns: cohorts more that have grown again.
        differences: sums more that differ by one site from an earlier one.
    """
    known = entries(folder)
    if not known:
        return
    last = known[-1]
    counts = dict(last.answered)
    if answered:
        counts[kind] = counts.get(kind, 0) + answered
    changed = msgspec.structs.replace(
        last,
        answered=counts,
        refused=last.refused + refused,
        repaired=last.repaired + repaired,
        returns=last.returns + returns,
        differences=last.differences + differences,
    )
    _save(folder, [*known[:-1], changed])


def lines(path: Path) -> list[str]:
    """Return what an operator reads of a site's sessions.

    Args:
        path: of the site's state folder.

    Raises:
        UserError: there is no such folder, it is in use, or its log is damaged.
    """
    with StateFolder.existing(path) as folder:
        try:
            found = entries(folder)
        except msgspec.DecodeError as error:
            raise UserError(f"the log in {path} is damaged: {error}") from None
    return [line for one in found for line in _told(one)] or ["no session has begun here"]


def _told(one: Entry) -> list[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.began))
    who = f"roster {one.roster[:16]}" if one.roster else "no roster, so anybody may have asked"
    sums = ", ".join(f"{kind} {count}" for kind, count in sorted(one.answered.items()))
    cost = "without DP"
    if one.epsilon:
        cost = f"epsilon {one.epsilon:g} of one {one.unit}, delta {one.delta:g}"
    cohorts = f"sums that differ by one site from one about similar dreams: {one.differences}"
    return [
        f"{at}  session {one.session.hex()}",
        f"  {one.model}, threshold {one.threshold} of {one.clients} sites, {who}",
        f"  answered: {sums or 'nothing'}; repaired {one.repaired}, refused {one.refused}; {cost}",
        f"  {cohorts}; sites that came back: {one.returns}",
    ]


def _save(folder: StateFolder, found: list[Entry]) -> None:
    folder.save(RECORD, msgspec.msgpack.encode(found))
