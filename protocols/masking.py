"""Double masking: self and pairwise masks over all sections (SPEC 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.params import Task
from protocols.primitives import prg
from protocols.primitives.field import PrimeField
from protocols.primitives.keys import KeyPair, hkdf, u64


def mask_key_pair(seed: bytes, client: int, key: int, off0: bytes) -> KeyPair:
    """Derive a client's mask key pair of one key step from its shared seed (SPEC 3.4).

    The seed is shared and committed to, not the key: a seed that the server rebuilds can then be
    checked against both the commitment and the advertised public key.
    """
    return KeyPair.from_private_bytes(hkdf(seed, "mask key", u64(client), u64(key), off0))


def self_mask_key(seed: bytes, client: int, on: bytes) -> bytes:
    """Return the key of a client's self mask in one step; 32 secret bytes (SPEC 3.3)."""
    return hkdf(seed, "self", u64(client), on)


def pair_mask_key(own: KeyPair, client: int, peer: int, peer_public: bytes, on: bytes) -> bytes:
    """Return the key of the mask that `client` and `peer` have in common; 32 secret bytes.

    Both sides get the same key, because the two ids enter in ascending order.

    Raises:
        CryptoError: the peer's public key has low order.
    """
    low, high = sorted((client, peer))
    return hkdf(own.agree(peer_public), "pair", u64(low), u64(high), on)


def pair_sign(client: int, peer: int) -> int:
    """Return +1 if `client` adds the common mask, -1 if it subtracts it; the two cancel."""
    return 1 if client > peer else -1


class MaskedSum:
    """Vectors of all sections plus signed masks (SPEC 4.3).

    `add` only remembers keys. `reduced` expands all masks together, block by block, because one
    reduction mod p then serves many masks (`prg.add_masks`).

    Args:
        task: names the sections.
        n: roster size; decides the fields.
        vectors: one per section, unsigned integers of shape (length,); they are copied.
    """

    def __init__(self, task: Task, n: int, vectors: Sequence[NDArray[np.unsignedinteger]]) -> None:
        self._names = [section.name.encode() for section in task.sections]
        self._fields = task.fields(n)
        self._totals = list(map(_residues, vectors, self._fields))
        self._masks: list[list[prg.SignedKey]] = [[] for _ in self._totals]

    def add(self, key: bytes, sign: int) -> None:
        """Add sign * mask(key); every section has a PRG key of its own (SPEC 3.3)."""
        for index, (name, masks) in enumerate(zip(self._names, self._masks, strict=True)):
            masks.append((hkdf(key, "section", u64(index), name), sign))

    def reduced(self) -> tuple[NDArray[np.uint32], ...]:
        """Return the sums mod p, one uint32 vector per section with entries in [0, p)."""
        for total, masks, field in zip(self._totals, self._masks, self._fields, strict=True):
            prg.add_masks(total, masks, field)
            masks.clear()
        return tuple(self._totals)


def _residues(vector: NDArray[np.unsignedinteger], field: PrimeField) -> NDArray[np.uint32]:
    """Return a copy mod p. Entries exceed p only where the caller has added vectors up itself."""
    return (vector if field.contains(vector) else vector % field.p).astype(np.uint32)
