"""Augmentation of dreams and of local pictures."""

import pytest
import torch
from torchvision.transforms import v2

from codream_secure.data.augment import _operations, augmented, augmented_locally
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import Scaling

SCALE = PixelScale(Scaling((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))


def test_every_augmented_dream_is_the_dream_moved_or_also_mirrored():
    dreams = torch.arange(40 * 2 * 16 * 16).reshape(40, 2, 16, 16).float()
    padded = torch.nn.functional.pad(dreams, (2, 2, 2, 2), mode="reflect")
    for how, orders in (("crop", (False,)), ("flip-crop", (False, True))):
        out = augmented(dreams, how, torch.Generator().manual_seed(0))
        found = set()
        for image, source in zip(out, padded, strict=True):
            matches = [
                (up, left, mirrored)
                for up in range(5)
                for left in range(5)
                for mirrored in orders
                if torch.equal(
                    image.flip(2) if mirrored else image,
                    source[:, up : up + 16, left : left + 16],
                )
            ]
            assert len(matches) == 1
            found.add(matches[0])
        assert len(found) > 15
        assert {mirrored for _, _, mirrored in found} == set(orders)
    assert augmented(dreams, "none", torch.Generator()) is dreams


def pixels(count=64, channels=3):
    return torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(5))


def test_local_crops_are_those_of_dreams():
    images = SCALE.scale(pixels())
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    found = augmented_locally("flip-crop", SCALE, images, one)
    assert torch.equal(found, augmented(images, "flip-crop", other))


def test_randaugment_repeats_with_its_generator_and_stays_in_the_range_of_pixels():
    images = SCALE.scale(pixels())
    found = [
        augmented_locally("randaugment", SCALE, images, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    back = SCALE.unscale(found[0])
    assert back.min() >= -1e-5
    assert back.max() <= 1 + 1e-5
    assert (found[0].shape, found[0].dtype) == (images.shape, torch.float32)


def test_randaugment_changes_no_state_of_the_global_generator():
    before = torch.get_rng_state()
    augmented_locally("randaugment", SCALE, SCALE.scale(pixels()), torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_operations_are_those_of_torchvision(channels):
    """Each operation of ours gives what torchvision's class gives for the same draw."""
    images, ours = pixels(2, channels), _operations(16)
    space = v2.RandAugment(magnitude=9)._AUGMENTATION_SPACE
    assert len(ours) == 2 * len(space)
    theirs = []
    for name, (magnitudes, signed) in space.items():
        values = magnitudes(31, 16, 16)
        value = 0.0 if values is None else float(values[9])
        for sign in (1, -1) if signed else (1, 1):
            theirs.append(
                v2.RandAugment()._apply_image_or_video_transform(
                    images, name, sign * value, v2.InterpolationMode.NEAREST, {}
                )
            )
    for operation in ours:
        made = operation(images)
        assert min(float((made - one).abs().max()) for one in theirs) < 1e-6


def test_a_minibatch_of_one_grey_image_can_be_augmented():
    scale = PixelScale(Scaling((0.5,), (0.2,)))
    one = scale.scale(torch.rand(1, 1, 8, 8))
    assert augmented_locally("randaugment", scale, one, torch.Generator()).shape == one.shape
