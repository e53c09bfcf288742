"""Compute clients in parallel on one machine: one thread for each client, one core a thread."""

import os
import threading
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


# Of each thread of `in_parallel`: set when whoever waits for it has been interrupted.
_own = threading.local()


def stop_if_interrupted() -> None:
    """End the work of a thread of `in_parallel` that nobody waits for any more.

    Training calls it before each step; otherwise a signal would wait for the whole training.

    Raises:
        KeyboardInterrupt: the thread that started this one has been interrupted, or met an error.
    """
    interrupted: threading.Event | None = getattr(_own, "interrupted", None)
    if interrupted is not None and interrupted.is_set():
        raise KeyboardInterrupt


def in_parallel(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield ``function(item)`` in the order of the items, computed on as many threads as cores.

    An interruption or an error ends the other threads at their next `stop_if_interrupted`.

    Args:
        function: must not touch what the call for another item touches.
        items: independent pieces of work.
    """
    interrupted = threading.Event()

    def begin() -> None:
        _own.interrupted = interrupted

    with ThreadPoolExecutor(os.cpu_count() or 1, initializer=begin) as pool:
        try:
            yield from pool.map(function, items)
        except BaseException:
            interrupted.set()
            raise
