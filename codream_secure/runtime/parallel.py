"""Clients of one machine side by side: one thread a client, one core a thread."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def one_core_each() -> Iterator[None]:
    """Keep torch's own thread pool at one thread inside the block.

    Small models lose more to a pool than they gain, several pools at once stall each other, and
    with one thread a client's gradient does not depend on what else runs.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_parallel(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield ``function(item)`` in the order of the items, computed on as many threads as cores.

    Args:
        function: touches nothing that another item's call touches.
        items: independent pieces of work.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(function, items)
