"""Who is in which sum: a site's rules on cohorts that differ by few sites (D1).

Two sums over similar broadcasts, with one site and without it, tell that site's answer. So the
site remembers, for the session, who was asked about which pixels, and refuses what goes beyond its
policy. In the semi-honest model it only counts, for its operator.
"""

import hashlib
import os
from collections.abc import Sequence

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

_RECORD = "cohorts"
NUMBERS = 64
# h_min: with fewer sites between two sums, their difference is one honest site's answer.
FEWEST = 2


class _Sum(msgspec.Struct, array_like=True):
    """A step: what was asked for, how many pixels, their projection, who was in it.

    ``counted``: whether it is among the differences already.
    """

    step: int
    kind: str
    size: int
    projection: bytes
    cohort: bytes
    counted: bool = False


class Cohorts(msgspec.Struct):
    """What a site knows of the cohorts of a session.

    Attributes:
        key: 32 secret bytes. A server that knew the projection could hide a change from it.
        last: bitmap of the last known cohort; empty before the first.
        returns: how often the cohort has grown again.
        differences: how many sums differ by few sites from an earlier one about similar pixels.
        sums: of pixels, in order.
    """

    key: bytes
    last: bytes = b""
    returns: int = 0
    differences: int = 0
    sums: list[_Sum] = []


def load(folder: StateFolder) -> Cohorts:
    """Return what a site knows of the session's cohorts."""
    return folder.load_as(_RECORD, Cohorts) or Cohorts(os.urandom(32))


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
        if known.sums and known.sums[-1].step >= step:
            return
        self._grow(active)
        kind, pixels = ("", np.zeros(0, np.uint8)) if about is None else about
        new = _Sum(step, kind, pixels.size, _projection(known.key, pixels), active)
        self._compare(new)
        known.sums = [*(known.sums if kind else [s for s in known.sums if s.kind]), new]
        self._save()

    def confirm(self, survivors: bytes) -> None:
        """Check the survivor set that is about to be signed.

        Raises:
            RequestRefused: as `admit`.
        """
        known = self._known
        if known.sums and known.sums[-1].cohort != survivors:
            *earlier, last = known.sums
            last.cohort, known.last = survivors, survivors
            known.sums = earlier
            self._compare(last)
            known.sums = [*earlier, last]
            self._save()

    def follow(self, entries: Sequence[Entry]) -> None:
        """Take in the cohorts of finished steps of the record: the site was asked some of them."""
        for entry in entries:
            self._grow(entry.survivors, refuse=False)
        if entries:
            self._save()

    def _grow(self, cohort: bytes, *, refuse: bool = True) -> None:
        known, policy = self._known, self._policy
        grown = known.last and any(a & ~b for a, b in zip(cohort, known.last, strict=True))
        if grown:
            shrinking = self._strict and not self._terms.rejoin
            if refuse and shrinking and known.returns >= policy.returns:
                raise RequestRefused(
                    f"a site that was out is back for the {known.returns + 1}th time, and this "
                    f"site's returns = {policy.returns}"
                )
            known.returns += 1
            site_log.record(self._folder, returns=1)
        known.last = cohort

    def _compare(self, new: _Sum) -> None:
        """Count a sum that differs by few sites from an earlier one about similar pixels."""
        known, policy = self._known, self._policy
        alike = (s for s in known.sums if _similar(s, new, policy.similar_pixels))
        if new.counted or all(not 0 < _between(s, new) < FEWEST for s in alike):
            return
        if self._strict and known.differences >= policy.small_differences:
            raise RequestRefused(
                f"the sum differs by fewer than {FEWEST} sites from one about similar pixels, for "
                f"the {known.differences + 1}th time, and this site's small_differences = "
                f"{policy.small_differences}"
            )
        known.differences, new.counted = known.differences + 1, True
        site_log.record(self._folder, differences=1)

    @property
    def _strict(self) -> bool:
        return self._terms.threat_model == "malicious"

    def _save(self) -> None:
        self._folder.save(_RECORD, msgspec.msgpack.encode(self._known))


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


def _similar(first: _Sum, second: _Sum, bound: float) -> bool:
    """Tell whether two sums are of one kind and about similar pixels.

    Other sizes cannot be compared, so they count as similar: a server must not evade the rule by
    one dream more.
    """
    if not first.kind or first.kind != second.kind:
        return False
    if first.size != second.size:
        return True
    one, other = (np.frombuffer(s.projection, "<f4").astype(np.float64) for s in (first, second))
    return bool(np.linalg.norm(one - other) < bound * np.sqrt(first.size))


def _between(first: _Sum, second: _Sum) -> int:
    """Return how many sites are in one of two cohorts alone."""
    return sum((a ^ b).bit_count() for a, b in zip(first.cohort, second.cohort, strict=True))
