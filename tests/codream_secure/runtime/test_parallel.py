"""Clients run beside each other; results come in order, and torch keeps to one thread."""

import os
import threading

import pytest
import torch

from codream_secure.runtime.parallel import in_parallel, one_core_each, stop_if_interrupted


def test_results_come_in_the_order_of_the_items_whichever_ends_first():
    done = threading.Event()

    def work(item):
        if item == 0 and (os.cpu_count() or 1) > 1:
            assert done.wait(30)  # the second item ends while the first is still at work
        done.set()
        return item * item

    assert list(in_parallel(work, range(6))) == [0, 1, 4, 9, 16, 25]


def test_an_error_of_one_item_reaches_the_caller():
    def work(item):
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        list(in_parallel(work, (1, 0, 2)))


def test_torch_has_one_thread_inside_and_its_own_number_again_outside():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_core_each():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_whoever_is_interrupted_ends_the_threads_at_their_next_step():
    running, steps = threading.Event(), []

    def train(item):
        if item == 0 and (os.cpu_count() or 1) > 1:
            assert running.wait(30)
            raise KeyboardInterrupt  # as a signal does in the thread that waits
        for step in range(10**9):
            running.set()
            stop_if_interrupted()
            steps.append(step)

    if (os.cpu_count() or 1) > 1:
        with pytest.raises(KeyboardInterrupt):
            list(in_parallel(train, range(2)))  # would not end otherwise
        assert running.is_set()
    stop_if_interrupted()  # nothing remains in this thread
    assert list(in_parallel(lambda item: stop_if_interrupted() or item, range(3))) == [0, 1, 2]
