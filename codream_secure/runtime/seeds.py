"""Derive independent seeds from the run's seed, so that results do not depend on scheduling."""

import hashlib

import torch


def derive_bytes(seed: int, *path: str | int) -> bytes:
    """Return 32 bytes that depend on ``seed`` and the whole ``path``, and on nothing else.

    Args:
        seed: the seed of the run.
        path: the purpose, for example ``("client", 3, "shuffle")``.
    """
    # Each part carries its length: without it, ("a", "bc") and ("ab", "c") would share a stream.
    parts = [str(part).encode() for part in (seed, *path)]
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.sha256(b"codream-secure seed\x00" + text).digest()


def derive_seed(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for a torch or numpy generator (see `derive_bytes`)."""
    return int.from_bytes(derive_bytes(seed, *path)[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a new CPU generator for the purpose that ``path`` names."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))
