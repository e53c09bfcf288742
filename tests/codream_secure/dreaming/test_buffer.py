"""The dream buffer."""

import pytest
import torch

from codream_secure.dreaming.buffer import DreamBuffer


def batch_of(value, count=2):
    return torch.full((count, 1), float(value)), torch.full((count, 1), float(value))


def test_the_buffer_forgets_the_oldest_batch_first():
    buffer = DreamBuffer(2)
    for value in range(3):
        buffer.add(*batch_of(value))
    seen = torch.cat([x for x, _ in buffer.epochs(1, 3, torch.Generator())])
    assert sorted(seen.flatten().tolist()) == [1, 1, 2, 2]
    assert len(buffer) == 4


def test_every_epoch_passes_each_dream_once_with_its_own_target():
    buffer = DreamBuffer(4)
    for value in range(4):
        buffer.add(*batch_of(value))
    pairs = list(buffer.epochs(2, 3, torch.Generator()))
    assert all((x == y).all() for x, y in pairs)
    assert sorted(torch.cat([x for x, _ in pairs]).flatten().tolist()) == sorted([0, 1, 2, 3] * 4)


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(9, 8, [9]), (17, 8, [8, 9]), (10, 8, [8, 2]), (1, 8, [1]), (3, 1, [1, 1, 1]), (8, 8, [8])],
)
def test_a_single_dream_that_is_left_over_joins_the_minibatch_before(count, batch, sizes):
    buffer = DreamBuffer(1)
    buffer.add(*batch_of(1, count))
    assert [len(x) for x, _ in buffer.epochs(1, batch, torch.Generator())] == sizes
    assert buffer.batches(batch) == len(sizes)


def test_a_buffer_augments_anew_in_every_epoch_and_keeps_the_targets():
    buffer = DreamBuffer(1)
    dreams = torch.rand(4, 1, 8, 8)
    buffer.add(dreams, torch.eye(4))
    pairs = list(buffer.epochs(3, 4, torch.Generator().manual_seed(1), "crop"))
    sorted_by_target = [x[y.argmax(dim=1).argsort()] for x, y in pairs]
    assert not torch.equal(sorted_by_target[0], sorted_by_target[1])
    assert all(x.shape == dreams.shape and x.is_contiguous() for x in sorted_by_target)
    again = list(buffer.epochs(3, 4, torch.Generator().manual_seed(1), "crop"))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(pairs, again, strict=True))
