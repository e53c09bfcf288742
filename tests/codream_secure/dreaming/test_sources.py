"""Where dreams start, and how their pixels move."""

import pytest
import torch

from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import Scaling
from codream_secure.dreaming.sources import ParallelBatches, PixelDreams, smooth_noise

SCALE = PixelScale(Scaling((0.5,), (0.25,)))  # scaled values lie in -2..2


def start(value, count=2):
    return torch.full((count, 1, 2, 2), value)


def test_averaged_dreams_move_by_the_clients_mean_displacement():
    dreams = PixelDreams(start(0.0), SCALE, optimizer="avg", lr=0.5)
    gradient = torch.tensor([1.0, -3.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert dreams.descend(gradient, stride=0.2)
    # lr * stride * gradient downwards.
    assert torch.allclose(dreams.dreams()[:, 0, 0, 0], torch.tensor([-0.1, 0.3]))


def test_a_first_step_of_adam_has_its_length_whatever_the_gradient():
    dreams = PixelDreams(start(0.0), SCALE, optimizer="adam", lr=0.1)
    dreams.descend(torch.tensor([1e-3, -50.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2), stride=9.0)
    assert torch.allclose(dreams.dreams()[:, 0, 0, 0], torch.tensor([-0.1, 0.1]), atol=1e-5)


@pytest.mark.parametrize("optimizer", ["avg", "adam", "fedadam"])
def test_dreams_stay_within_the_range_of_pixels(optimizer):
    dreams = PixelDreams(start(5.0), SCALE, optimizer=optimizer, lr=3.0)
    assert torch.equal(dreams.dreams(), start(2.0))
    for _ in range(3):
        dreams.descend(start(1.0), stride=1.0)
    assert torch.equal(dreams.dreams(), start(-2.0))


def test_smooth_noise_has_images_of_equal_spread_whose_neighbours_are_alike():
    images = smooth_noise((64, 1, 16, 16), torch.Generator().manual_seed(0))
    assert images.shape == (64, 1, 16, 16)
    assert torch.allclose(images.flatten(1).std(dim=1), torch.ones(64), atol=1e-5)
    assert abs(float(images.mean())) < 0.1
    apart = (images[..., 1:] - images[..., :-1]).square().mean()
    assert apart < 1  # of independent pixels it would be 2
    again = smooth_noise((64, 1, 16, 16), torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


class Undoing(PixelDreams):
    """Takes the step, and says that it was undone."""

    def descend(self, gradient, stride):
        super().descend(gradient, stride)
        return False


def test_parallel_batches_move_as_each_of_them_alone():
    alone = [PixelDreams(start(0.0, 3), SCALE, optimizer="adam", lr=0.1) for _ in range(2)]
    joined = ParallelBatches(
        [PixelDreams(start(0.0, 3), SCALE, optimizer="adam", lr=0.1) for _ in range(2)]
    )
    for seed in range(3):
        gradient = torch.randn((6, 1, 2, 2), generator=torch.Generator().manual_seed(seed))
        assert joined.descend(gradient, 1.0)
        for one, part in zip(alone, gradient.chunk(2), strict=True):
            one.descend(part, 1.0)
    assert torch.equal(joined.dreams(), torch.cat([one.dreams() for one in alone]))


def test_one_batch_that_undoes_its_step_is_told_and_the_others_keep_theirs():
    kinds = (PixelDreams, Undoing)
    joined = ParallelBatches([k(start(0.0, 1), SCALE, optimizer="avg", lr=1.0) for k in kinds])
    assert not joined.descend(start(1.0), 0.5)
    assert torch.equal(joined.dreams()[0], start(-0.5)[0])
