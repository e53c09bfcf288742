"""Who is in which sum: a site's rules on cohorts that differ by few sites (D1).

Two sums over similar broadcasts, with one site and without it, tell that site's answer. So the
site remembers, for the session, who was asked about which pixels, and refuses what goes beyond its
policy. In the semi-honest model it only counts, for its operator.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.aggregation.requests import DreamRequest, LabelRequest
from codream_secure.errors import RequestRefused
from codream_secure.sites import site_log
from codream_secure.sites.policy import SitePolicy
from codream_secure.sites.session import Terms
from codream_secure.sites.wire import Entry
from codream_secure.storage.state_folder import StateFolder

_KEY, _RECORD = "cohorts-key", "cohorts"
NUMBERS = 64
# h_min: with fewer sites between two sums, their difference is one honest site's answer.
FEWEST = 2


class _Sum(msgspec.Struct, array_like=True, frozen=True):
    """A step: what was asked for, how many pixels, their projection, who was in it.

    ``kind`` is empty for sums that are not about pixels. ``returns`` and ``differences`` are the
    session's counts after this step, see `Cohorts`. ``counted``: whether the step is among the
    differences.
    """

    step: int
    kind: str
    size: int
    projection: bytes
    cohort: bytes
    counted: bool = False
    returns: int = 0
    differences: int = 0

    @property
    def numbers(self) -> NDArray[np.float64]:
        """The projection, float64, shape (64,)."""
        return np.frombuffer(self.projection, "<f4").astype(np.float64)


@dataclass(slots=True, eq=False)
class Cohorts:
    """What a site knows of the cohorts of a session.

    Attributes:
        key: 32 secret bytes. A server that knew the projection could hide a change from it.
        sums: about pixels, in order.
        last: the newest step, about pixels or not; None before the first. What the record alone
            tells of has the number -1.
        asked: number of the newest step that the site was asked; -1 before the first.
    """

    key: bytes
    sums: list[_Sum] = field(default_factory=list)
    last: _Sum | None = None
    asked: int = -1

    @property
    def returns(self) -> int:
        """How often the cohort has grown again."""
        return self.last.returns if self.last else 0

    @property
    def differences(self) -> int:
        """How many sums showed one site's answer, by their difference to an earlier one."""
        return self.last.differences if self.last else 0

    def take(self, new: _Sum) -> None:
        """Take in one more step; it replaces the newest one of the same number."""
        if self.sums and self.sums[-1].step == new.step:
            self.sums.pop()
        if new.kind:
            self.sums.append(new)
        self.last, self.asked = new, max(self.asked, new.step)


def load(folder: StateFolder) -> Cohorts:
    """Return what a site knows of the session's cohorts."""
    key = folder.load(_KEY)
    if key is None:
        key = os.urandom(32)
        folder.save(_KEY, key)
    known = Cohorts(key)
    for line in folder.lines(_RECORD):
        known.take(msgspec.msgpack.decode(line, type=_Sum))
    return known


def asked_about(request: object) -> tuple[str, NDArray[np.uint8]] | None:
    """Return the kind of an answer that depends on pixels, and the pixels; None: it does not.

    Sums with noise do not count: their budget limits them.
    """
    if isinstance(request, DreamRequest):
        return "dreams", np.frombuffer(request.dreams, np.uint8)
    if isinstance(request, LabelRequest) and request.labels.noisy is None:
        return "labels", np.frombuffer(request.dreams, np.uint8)
    return None


class CohortRules:
    """The rules of one site in one session.

    Args:
        folder: of the site.
        policy: its own.
        terms: of the session.
    """

    def __init__(self, folder: StateFolder, policy: SitePolicy, terms: Terms) -> None:
        self._folder, self._policy, self._terms = folder, policy, terms
        self._known = load(folder)

    def admit(
        self, step: int, active: bytes, about: tuple[str, NDArray[np.uint8]] | None = None
    ) -> None:
        """Check the active set of a step that is asked, and remember it.

        Args:
            step: its number; what is asked again is not counted again.
            active: bitmap of the active set.
            about: kind and pixels, as `asked_about` returns them.

        Raises:
            RequestRefused: the cohort grows once more than the policy allows, or differs by few
                sites from one that was asked about similar pixels.
        """
        known = self._known
        if known.asked >= step:
            return
        returns = self._grown(active)
        kind, pixels = ("", np.zeros(0, np.uint8)) if about is None else about
        new = _Sum(step, kind, pixels.size, _projection(known.key, pixels), active)
        self._save(self._compared(new, returns))

    def confirm(self, survivors: bytes) -> None:
        """Check the survivor set that is about to be signed.

        Raises:
            RequestRefused: as `admit`.
        """
        last = self._known.last
        if last is not None and last.cohort != survivors:
            changed = msgspec.structs.replace(last, cohort=survivors)
            self._save(self._compared(changed, last.returns))

    def follow(self, entries: Sequence[Entry]) -> None:
        """Take in the cohorts of finished steps of the record: the site was asked some of them."""
        for entry in entries:
            last = self._known.last
            if last is None or last.cohort != entry.survivors:
                returns = self._grown(entry.survivors, refuse=False)
                self._save(_Sum(-1, "", 0, b"", entry.survivors, False, returns, self._count))

    @property
    def _count(self) -> int:
        return self._known.differences

    def _grown(self, cohort: bytes, *, refuse: bool = True) -> int:
        """Return how often the cohort has grown again, this one included."""
        known, policy = self._known, self._policy
        before = known.last.cohort if known.last else b""
        if not (before and any(a & ~b for a, b in zip(cohort, before, strict=True))):
            return known.returns
        shrinking = self._strict and not self._terms.rejoin
        if refuse and shrinking and known.returns >= policy.returns:
            raise RequestRefused(
                f"a site that was out is back for the {known.returns + 1}th time, and this "
                f"site's returns = {policy.returns}"
            )
        site_log.record(self._folder, returns=1)
        return known.returns + 1

    def _compared(self, new: _Sum, returns: int) -> _Sum:
        """Return a step with its counts: whether its difference to an earlier sum is a new one."""
        policy, count = self._policy, self._count
        earlier = [s for s in self._known.sums if s.kind == new.kind and s.step != new.step]
        shows = new.kind and not new.counted and _shows(new, earlier, policy.similar_pixels)
        if shows:
            if self._strict and count >= policy.small_differences:
                raise RequestRefused(
                    f"the sum differs by fewer than {FEWEST} sites from one about similar pixels, "
                    f"for the {count + 1}th time, and this site's small_differences = "
                    f"{policy.small_differences}"
                )
            site_log.record(self._folder, differences=1)
        return msgspec.structs.replace(
            new,
            counted=bool(new.counted or shows),
            returns=returns,
            differences=count + bool(shows),
        )

    @property
    def _strict(self) -> bool:
        return self._terms.threat_model == "malicious"

    def _save(self, new: _Sum) -> None:
        self._known.take(new)
        self._folder.add(_RECORD, msgspec.msgpack.encode(new))


def _projection(key: bytes, pixels: NDArray[np.uint8]) -> bytes:
    """Return 64 numbers whose distances are those of the pixels, up to chance.

    Every pixel is added to one of the numbers, with a sign (count sketch; Charikar et al. 2002).
    """
    seed = int.from_bytes(hashlib.sha256(key + pixels.size.to_bytes(8, "big")).digest(), "big")
    drawn = np.random.Generator(np.random.Philox(key=seed % 2**128)).integers(
        0, 2 * NUMBERS, pixels.size, dtype=np.uint8
    )
    signed = np.where(drawn < NUMBERS, 1.0, -1.0) * pixels
    numbers = np.bincount(drawn % NUMBERS, weights=signed, minlength=NUMBERS)
    return numbers.astype("<f4").tobytes()


def _shows(new: _Sum, earlier: Sequence[_Sum], bound: float) -> bool:
    """Tell whether a sum shows an answer that no earlier difference shows, or shows it better.

    The difference to a similar sum that has one site more or less shows that site's answer in the
    larger one. It is a new answer if the new sum is the larger one. Otherwise it is an answer of
    the earlier sum, known already if a sum over the new cohort was at least as near to it.
    Honest dreams move away from a sum that a site has left, so a dropout counts once; a server
    that goes back to earlier dreams, without the site, counts each time.

    Other sizes cannot be compared, so they count as similar: a server must not evade the rule by
    one dream more.
    """
    reach = bound * np.sqrt(new.size)
    same = [s for s in earlier if s.cohort == new.cohort and s.size == new.size]
    for one in earlier:
        if not 0 < _between(one, new) < FEWEST:
            continue
        if one.size != new.size:
            return True
        distance = _distance(one, new)
        if distance < reach and (
            _is_larger(new, one) or all(_distance(one, s) > distance for s in same)
        ):
            return True
    return False


def _distance(first: _Sum, second: _Sum) -> float:
    return float(np.linalg.norm(first.numbers - second.numbers))


def _is_larger(first: _Sum, second: _Sum) -> bool:
    return any(a & ~b for a, b in zip(first.cohort, second.cohort, strict=True))


def _between(first: _Sum, second: _Sum) -> int:
    """Return how many sites are in one of two cohorts alone."""
    return sum((a ^ b).bit_count() for a, b in zip(first.cohort, second.cohort, strict=True))
