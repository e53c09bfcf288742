"""Layouts of convolutions that a processor can bear."""

import pytest
import torch
from torch import nn

from codream_secure.data.spec import InputSpec
from codream_secure.models.build import build_model
from codream_secure.models.layers import takes_channels_last

SPEC = InputSpec(channels=1, height=8, width=8, classes=10)


@pytest.mark.parametrize(("width", "safe"), [(4, False), (6, False), (8, True), (16, True)])
def test_narrow_shortcuts_do_not_take_channels_last(width, safe):
    assert takes_channels_last(build_model("resnet8", SPEC, width=width, seed=0)) == safe


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1, stride=(1, 2)), False),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(4, 8, 3, stride=2), True),
        (nn.Conv2d(8, 4, 1, stride=2), True),
    ],
)
def test_only_strided_one_by_one_convolutions_of_few_channels_are_at_fault(layer, safe):
    assert takes_channels_last(nn.Sequential(nn.Sequential(layer))) == safe


def test_a_narrow_shortcut_gets_the_usual_layout_whatever_the_images_have():
    model = build_model("resnet8", SPEC, width=4, seed=0)
    seen = []
    for layer in model.modules():
        narrow = isinstance(layer, nn.Conv2d) and layer.in_channels == 4
        if narrow and layer.stride == (2, 2) and layer.kernel_size == (1, 1):
            layer.register_forward_hook(lambda _, inputs, __: seen.extend(inputs))
    images = torch.rand(5, 8, 8, 1).permute(0, 3, 1, 2)
    for _ in range(50):  # the heap survives
        model(images.to(memory_format=torch.channels_last)).sum().backward()
    assert seen
    assert all(tensor.is_contiguous() for tensor in seen)
