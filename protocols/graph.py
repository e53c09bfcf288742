"""Who masks with whom and who holds whose shares (SPEC 1.4)."""

from __future__ import annotations


def complete(client: int, members: tuple[int, ...]) -> tuple[int, ...]:
    """Neighbours in the complete graph: every member but the client itself, in ascending order.

    This is the only graph of this version. Sparse graphs replace this one function; everything
    else speaks of neighbours.
    """
    return tuple(peer for peer in members if peer != client)
