"""Builders that the properties rely on."""

import numpy as np

from protocols.audit import strategies as some


def test_strategies_name_whoever_is_counted_and_how_often():
    assert some.named((10, 13, 16), np.array([1, 0, 2])) == [10, 16, 16]
