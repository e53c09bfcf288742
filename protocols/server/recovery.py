"""Rebuilds committed seeds from shares, and remembers the shares that did not fit (SPEC 3.7)."""

from __future__ import annotations

from collections.abc import Mapping

from protocols import context, messages
from protocols.errors import CryptoError, RemoteProtocolError
from protocols.evidence import Doubt, Inquiry
from protocols.graph import share_points
from protocols.messages import EvidenceRequest
from protocols.params import BatchParams
from protocols.phases import Phase
from protocols.seeds import Kind, SeedSlot
from protocols.server.offline import BatchKeys


class SeedRecovery:
    """Finds the seeds of one step.

    Args:
        batch: public parameters.
        keys: the batch's keys and commitments.
        key: the key step.
        bound: the context that evidence about this step is signed under.

    Attributes:
        liars: clients that answered with a wrong share.
        doubts: by client, its shares that did not fit, or may not.
        found: (owner, kind) of the seeds that were found.
        lost: whether a seed was not found; its owner may be honest.
    """

    def __init__(self, batch: BatchParams, keys: BatchKeys, key: int, bound: bytes) -> None:
        self._batch = batch
        self._keys = keys
        self._key = key
        self._bound = bound
        self._off0 = context.offline(batch)
        self._points = share_points(batch.roster)
        self.liars: set[int] = set()
        self.doubts: dict[int, list[Doubt]] = {}
        self.found: set[tuple[int, Kind]] = set()
        self.lost = False

    def find(self, client: int, kind: Kind, shares: Mapping[int, bytes]) -> bytes:
        """Return the seed that a client committed to.

        Shares of known liars are used only if the others are not enough.

        Args:
            client: the owner of the seed.
            kind: which of its two seeds.
            shares: holder -> share, every one a field element.

        Raises:
            RemoteProtocolError: no set of shares that was tried gives the committed seed.
        """
        slot = SeedSlot(self._off0, client, self._key, kind)
        commitment = self._keys.commitment(client, self._key, kind)
        threshold = self._batch.share_threshold
        trusted = {u: share for u, share in shares.items() if u not in self.liars}
        for chosen in (trusted, shares) if len(trusted) < len(shares) else (shares,):
            by_point = {self._points[u]: share for u, share in chosen.items()}
            try:
                seed, wrong = slot.recover(by_point, threshold, commitment)
            except CryptoError:
                continue
            self._doubt(client, kind, {u: s for u, s in chosen.items() if self._points[u] in wrong})
            self.found.add((client, kind))
            self.liars |= {u for u in chosen if self._points[u] in wrong}
            return seed
        self._doubt(client, kind, shares)
        self.lost = True
        raise RemoteProtocolError(
            client, Phase.UNMASKING, "the shares do not give the committed seed"
        )

    def inquiry(self) -> Inquiry | None:
        """Return what to ask for evidence of; None if all shares fitted (SPEC 6.10)."""
        if not self.doubts:
            return None
        slots = {(d.owner, d.kind) for doubts in self.doubts.values() for d in doubts}
        return Inquiry(
            self._batch,
            self._off0,
            self._keys.off1,
            self._key,
            self._bound,
            {u: tuple(doubts) for u, doubts in self.doubts.items()},
            frozenset(self.found),
            {slot: self._keys.commitment(slot[0], self._key, slot[1]) for slot in slots},
            self._points,
        )

    def _doubt(self, owner: int, kind: Kind, shares: Mapping[int, bytes]) -> None:
        for u, share in shares.items():
            self.doubts.setdefault(u, []).append(Doubt(owner, kind, share))


def evidence_request(batch: BatchParams, inquiry: Inquiry, client: int) -> EvidenceRequest:
    """Return what one client is asked for evidence of (SPEC 6.10)."""
    owners = {
        kind: messages.encode_set(
            [doubt.owner for doubt in inquiry.doubts[client] if doubt.kind is kind], batch.roster
        )
        for kind in Kind
    }
    return EvidenceRequest(inquiry.key, owners[Kind.SELF_MASK], owners[Kind.MASK_KEY])
