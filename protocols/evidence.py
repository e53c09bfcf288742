"""Proof of who dealt a wrong share: signed Merkle roots and paths (SPEC 3.12, 6.10).

Malicious model only. A share that does not fit its owner's commitment was changed by the client
that answered with it, or its owner dealt it wrong. The owner signs for each recipient the root over
all shares that it deals to it. The recipient checks the signature before it accepts the bundle, so
it can later prove what it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from protocols.errors import CryptoError
from protocols.params import BatchParams
from protocols.primitives.keys import digest, u64, verify
from protocols.seeds import Kind, SeedSlot, place


def leaves(shares: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the digests of a bundle's 2M shares, in the order of the bundle."""
    return tuple(digest("leaf", u64(index), share) for index, share in enumerate(shares))


def root(level: Sequence[bytes]) -> bytes:
    """Return the Merkle root over leaves; a node without a sibling moves up as it is."""
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def path(level: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the siblings from one leaf up to the root."""
    siblings = []
    while len(level) > 1:
        if index ^ 1 < len(level):
            siblings.append(level[index ^ 1])
        level, index = _parents(level), index // 2
    return tuple(siblings)


def root_of_path(leaf: bytes, index: int, count: int, siblings: Sequence[bytes]) -> bytes:
    """Return the root that a leaf and its path lead to.

    Args:
        leaf: digest of a share.
        index: its place in the bundle.
        count: 2M, leaves of the bundle.
        siblings: result of `path`.

    Raises:
        CryptoError: the path has a wrong length.
    """
    left = list(siblings)
    while count > 1:
        if index ^ 1 < count:
            if not left:
                raise CryptoError("path is too short")
            pair = (leaf, left.pop(0)) if index % 2 == 0 else (left.pop(0), leaf)
            leaf = digest("node", *pair)
        index, count = index // 2, (count + 1) // 2
    if left:
        raise CryptoError("path is too long")
    return leaf


def statement(off1: bytes, dealer: int, recipient: int, signed_root: bytes) -> bytes:
    """Return what a dealer signs for one recipient."""
    return digest("shares", off1, u64(dealer), u64(recipient), signed_root)


def _parents(level: Sequence[bytes]) -> tuple[bytes, ...]:
    pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
    return tuple(digest("node", *pair) if len(pair) == 2 else pair[0] for pair in pairs)  # noqa: PLR2004 - a pair


@dataclass(frozen=True, slots=True)
class Doubt:
    """A share in an answer that does not fit the committed seed, or may not fit it."""

    owner: int
    kind: Kind
    share: bytes = field(repr=False)


@dataclass(slots=True)
class Inquiry:
    """The server's inquiry after a step in which shares did not fit, and its conclusion.

    Args:
        batch: public.
        off0, off1: contexts of the batch.
        key: the key step.
        bound: what answers are signed under: the step and its survivor set.
        doubts: by client that answered with the shares.
        found: (owner, kind) of seeds that were found all the same.
        commitments: (owner, kind) -> commitment, of those that were not.
        points: client -> Shamir x.
    """

    batch: BatchParams
    off0: bytes
    off1: bytes
    key: int
    bound: bytes
    doubts: Mapping[int, tuple[Doubt, ...]]
    found: frozenset[tuple[int, Kind]]
    commitments: Mapping[tuple[int, Kind], bytes]
    points: Mapping[int, int]
    proven: dict[int, frozenset[Doubt]] = field(default_factory=dict)

    def answered(
        self, client: int, signatures: Sequence[bytes], paths: Sequence[Sequence[bytes]]
    ) -> None:
        """Record which doubts a client's evidence removes. The others count against the client.

        Args:
            client: who answers; asked before, and answers for the first time.
            signatures: of the dealers, in the order of the client's doubts.
            paths: of the shares, in the same order.
        """
        proven = set()
        if len(signatures) == len(paths) == len(self.doubts[client]):
            for doubt, signature, siblings in zip(
                self.doubts[client], signatures, paths, strict=True
            ):
                if self._holds(client, doubt, signature, siblings):
                    proven.add(doubt)
        self.proven[client] = frozenset(proven)

    def verdict(self) -> frozenset[int]:
        """Return the clients that dealt or gave a wrong share, as far as the answers prove it."""
        named = set()
        dealt: dict[tuple[int, Kind], dict[int, bytes]] = {}
        for client, doubts in self.doubts.items():
            proven = self.proven.get(client, frozenset())
            for doubt in doubts:
                if doubt not in proven:
                    named.add(client)
                elif (doubt.owner, doubt.kind) in self.found:
                    named.add(doubt.owner)
                else:
                    shares = dealt.setdefault((doubt.owner, doubt.kind), {})
                    shares[self.points[client]] = doubt.share
        return frozenset(
            named | {slot[0] for slot, shares in dealt.items() if self._bad(slot, shares)}
        )

    def _holds(
        self, client: int, doubt: Doubt, signature: bytes, siblings: Sequence[bytes]
    ) -> bool:
        index = place(self.key, doubt.kind)
        leaf = digest("leaf", u64(index), doubt.share)
        try:
            signed = root_of_path(leaf, index, 2 * self.batch.steps, siblings)
            verify(
                self.batch.identity(doubt.owner),
                signature,
                statement(self.off1, doubt.owner, client, signed),
            )
        except CryptoError:
            return False
        return True

    def _bad(self, slot: tuple[int, Kind], shares: Mapping[int, bytes]) -> bool:
        """Tell whether at least τ proven shares of a dealer do not give its committed seed."""
        owner, kind = slot
        threshold = self.batch.share_threshold
        if len(shares) < threshold:
            return False
        place_of_seed = SeedSlot(self.off0, owner, self.key, kind)
        try:
            place_of_seed.recover(shares, threshold, self.commitments[slot])
        except CryptoError:
            return True
        return False
