"""Compute clients in parallel on one machine: one thread for each client, one core a thread."""

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
    """Limit torch's own thread pool to one thread inside the block.

    A pool costs small models more than it gains, and several pools at once block each other. With
    one thread, a client's gradient does not depend on what else runs.
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
        function: must not touch what the call for another item touches.
        items: independent pieces of work.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(function, items)
