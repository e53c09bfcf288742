"""Layouts of convolutions that a processor can bear."""

import pytest
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
