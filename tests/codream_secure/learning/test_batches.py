"""Streams of minibatches."""

import torch

from codream_secure.learning.batches import BatchStream


def test_a_stream_of_batches_goes_on_inside_an_epoch():
    def stream(seed):
        x = torch.arange(10)
        return BatchStream(x, x, 3, torch.Generator().manual_seed(seed))

    whole, part = stream(7), stream(7)
    expected = [whole.next()[0].tolist() for _ in range(12)]
    for epoch in range(4):
        assert len({x for batch in expected[3 * epoch : 3 * epoch + 3] for x in batch}) == 9
    found = []
    for number in range(12):
        found.append(part.next()[0].tolist())
        state, part = part.state(), stream(number)
        part.restore(state)
    assert found == expected
