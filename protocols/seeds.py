"""Seeds: committing to them, sharing them, finding them among wrong shares (SPEC 3.6, 3.7)."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice

from protocols.errors import CryptoError
from protocols.primitives import decoding, shamir
from protocols.primitives.keys import digest, hkdf, u64

# The sets to leave out grow exponentially with the wrong shares. After this many attempts the seed
# counts as lost, so that a few liars cannot keep the server busy for ever.
MAX_ATTEMPTS = 512


class Kind(enum.StrEnum):
    """The purpose of a seed."""

    MASK_KEY = "mask key"
    SELF_MASK = "self mask"


def place(key: int, kind: Kind) -> int:
    """Return the place of a step's share or commitment of a kind, of 2M (SPEC 3.5, 3.7)."""
    return 2 * key + (kind is Kind.SELF_MASK)


@dataclass(frozen=True, slots=True)
class SeedSlot:
    """The name of one seed: its owner, its key step and its kind. It holds no secret."""

    off0: bytes
    client: int
    key: int
    kind: Kind

    def commit(self, seed: bytes) -> bytes:
        """Return the 32-byte commitment. It hides the seed because the seed is uniform."""
        return digest("commitment", *self._context(), seed)

    def split(self, seed: bytes, threshold: int, points: Iterable[int]) -> dict[int, bytes]:
        """Return x -> share. The seed decides the polynomial, so shares can be checked later."""
        degrees = range(threshold - 1, 0, -1)
        return shamir.split(seed, [self._coefficient(seed, d) for d in degrees], points)

    def recover(
        self, shares: Mapping[int, bytes], threshold: int, commitment: bytes
    ) -> tuple[bytes, frozenset[int]]:
        """Find the committed seed in spite of wrong shares.

        It decodes first. That corrects (len(shares) - threshold) // 2 wrong shares. The search
        behind it corrects more of them where few shares are to spare.

        Args:
            shares: x -> share, every one a field element.
            threshold: the number the seed was shared with.
            commitment: what its owner committed to.

        Returns:
            The seed, and the x of every share that was found wrong.

        Raises:
            CryptoError: neither finds shares that give the committed seed.
        """
        seed = self.rebuild(shares, threshold, commitment)
        if seed is not None:  # the usual case: nobody lies
            return seed, frozenset()
        with contextlib.suppress(CryptoError):
            values = {x: shamir.decode_element(share) for x, share in shares.items()}
            wrong = decoding.errors(values, threshold)
            right = {x: share for x, share in shares.items() if x not in wrong}
            seed = self.rebuild(right, threshold, commitment)
            if seed is not None:
                return seed, wrong
        return self.search(shares, threshold, commitment)

    def rebuild(
        self, shares: Mapping[int, bytes], threshold: int, commitment: bytes
    ) -> bytes | None:
        """Return the seed that the shares of the smallest x give; None if it does not fit."""
        if len(shares) < threshold:
            return None
        seed = shamir.reconstruct(shares, threshold)
        return seed if self.commit(seed) == commitment else None

    def search(
        self, shares: Mapping[int, bytes], threshold: int, commitment: bytes
    ) -> tuple[bytes, frozenset[int]]:
        """Find the committed seed by leaving out shares: none, one, then two, and so on.

        Arguments, result and errors are those of `recover`.
        """
        for xs in _subsets(tuple(sorted(shares)), threshold):
            seed = self.rebuild({x: shares[x] for x in xs}, threshold, commitment)
            if seed is not None:
                right = self.split(seed, threshold, shares)
                return seed, frozenset(x for x, share in shares.items() if share != right[x])
        raise CryptoError("the shares do not give the committed seed")

    def _coefficient(self, seed: bytes, degree: int) -> int:
        derived = hkdf(seed, "coefficient", u64(degree), *self._context())
        return int.from_bytes(derived, "big") % shamir.P

    def _context(self) -> tuple[bytes, ...]:
        return self.off0, u64(self.client), u64(self.key), self.kind.encode()


def _subsets(xs: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    """Yield the first `threshold` of xs, then sets with one x left out, with two, and so on.

    It yields every set once, MAX_ATTEMPTS at most. With k left out the last x chosen is
    xs[threshold + k - 1] and those left out stand before it; else an earlier k gave the same set.
    """
    return islice(_all_subsets(xs, threshold), MAX_ATTEMPTS)


def _all_subsets(xs: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    for left_out in range(len(xs) - threshold + 1):
        *before, last = xs[: threshold + left_out]
        for gone in combinations(before, left_out):
            yield (*(x for x in before if x not in gone), last)


def commit_all(leaves: Iterable[bytes]) -> bytes:
    """Return one 32-byte commitment to a client's 2M commitments (SPEC 3.7)."""
    return digest("commitments", *leaves)
