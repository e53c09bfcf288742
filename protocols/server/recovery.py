"""Rebuilds the committed seeds of a step from shares of which some are wrong (SPEC 3.7)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from protocols import context
from protocols.errors import CryptoError, SeedLost
from protocols.graph import share_points
from protocols.params import BatchParams
from protocols.phases import Phase
from protocols.primitives import decoding, shamir
from protocols.primitives.keys import Entropy
from protocols.seeds import Kind, SeedSlot
from protocols.server.offline import BatchKeys


@dataclass(frozen=True, slots=True)
class Needed:
    """A seed that the server needs, and the shares of it that came.

    Attributes:
        owner: whose seed it is.
        kind: which of its two seeds.
        shares: holder -> share, every one a field element.
    """

    owner: int
    kind: Kind
    shares: Mapping[int, bytes] = field(repr=False)


class SeedRecovery:
    """Rebuilds the seeds of one step.

    Args:
        batch: public parameters.
        keys: the batch's keys and commitments.
        key: the key step.
        entropy: draws the coefficients of the common decoding; None: there is no common decoding,
            and every seed that does not fit is decoded alone, which takes longer.

    Attributes:
        wrong: clients whose shares were left out as wrong. Each of them changed a share, or was
            dealt a wrong one.
    """

    def __init__(
        self, batch: BatchParams, keys: BatchKeys, key: int, entropy: Entropy | None
    ) -> None:
        self._batch, self._keys, self._key, self._entropy = batch, keys, key, entropy
        self._off0 = context.offline(batch)
        self._points = share_points(batch.roster)
        self._clients = {x: u for u, x in self._points.items()}
        self.wrong: frozenset[int] = frozenset()

    def find(self, needed: Iterable[Needed]) -> dict[tuple[int, Kind], bytes]:
        """Return owner and kind -> seed, for all seeds of the step.

        Raises:
            SeedLost: no shares of one owner that were tried give the committed seed.
        """
        seeds, doubtful = {}, []
        for one in needed:
            seed = self._fitting(one, one.shares)
            if seed is None:
                doubtful.append(one)
            else:
                seeds[one.owner, one.kind] = seed
        if self._entropy is not None:
            self._decode_together(doubtful, self._entropy)
        for one in doubtful:
            seeds[one.owner, one.kind] = self._recovered(one)
        return seeds

    def _decode_together(self, doubtful: Iterable[Needed], entropy: Entropy) -> None:
        """Find the responders with wrong shares, once for all seeds with the same holders.

        A random combination of the shares is wrong exactly where a responder is wrong, except with
        probability 1 / P for each responder. The coefficients are drawn after the last answer, so
        nobody can choose wrong shares that cancel each other.
        """
        together: dict[tuple[int, ...], list[Needed]] = {}
        for one in doubtful:
            together.setdefault(tuple(sorted(one.shares)), []).append(one)
        for holders, group in together.items():
            values = dict.fromkeys(holders, 0)
            for one in group:
                factor = int.from_bytes(shamir.draw_element(entropy), "big")
                for u in holders:
                    values[u] += factor * int.from_bytes(one.shares[u], "big")
            by_point = {self._points[u]: value % shamir.P for u, value in values.items()}
            # Too many are wrong, or a dealer lied: then every seed is decoded alone.
            with contextlib.suppress(CryptoError):
                self._add(decoding.errors(by_point, self._batch.share_threshold))

    def _recovered(self, one: Needed) -> bytes:
        """Return a seed of which the first shares did not fit."""
        trusted = {u: share for u, share in one.shares.items() if u not in self.wrong}
        seed = self._fitting(one, trusted)
        if seed is not None:
            return seed
        for shares in (trusted, one.shares) if len(trusted) < len(one.shares) else (one.shares,):
            by_point = {self._points[u]: share for u, share in shares.items()}
            with contextlib.suppress(CryptoError):
                seed, wrong = self._slot(one).recover(by_point, *self._against(one))
                self._add(wrong)
                return seed
        raise SeedLost(one.owner, Phase.UNMASKING, "the shares do not give the committed seed")

    def _fitting(self, one: Needed, shares: Mapping[int, bytes]) -> bytes | None:
        by_point = {self._points[u]: share for u, share in shares.items()}
        return self._slot(one).rebuild(by_point, *self._against(one))

    def _slot(self, one: Needed) -> SeedSlot:
        return SeedSlot(self._off0, one.owner, self._key, one.kind)

    def _against(self, one: Needed) -> tuple[int, bytes]:
        """Return how many shares the seed needs, and what its owner committed to."""
        commitment = self._keys.commitment(one.owner, self._key, one.kind)
        return self._batch.share_threshold, commitment

    def _add(self, points: Iterable[int]) -> None:
        self.wrong |= {self._clients[x] for x in points}
