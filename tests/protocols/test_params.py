"""Parameters outside the specified ranges are refused."""

import pytest
from secagg_helpers import make_params

from protocols.errors import (
    ConfigError,
)
from protocols.params import AggregationParams, Section, default_threshold


def test_default_thresholds():
    assert {n: default_threshold(n) for n in (3, 4, 10, 12, 100)} == {
        3: 3, 4: 3, 10: 7, 12: 9, 100: 67,
    }  # fmt: skip


GOOD_SECTION = {"name": "g", "length": 5, "maximum": 15, "clip": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""}, {"name": "é" * 33}, {"length": 0}, {"length": 2**28 + 1}, {"maximum": 0},
        {"maximum": 2**24 + 1}, {"clip": 0.0}, {"clip": -1.0}, {"clip": float("nan")},
        {"clip": float("inf")},
    ],
)  # fmt: skip
def test_section_is_validated(change):
    with pytest.raises(ConfigError):
        Section(**{**GOOD_SECTION, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"session": bytes(31)}, {"step": -1}, {"step": 2**64}, {"kind": ""},
        {"broadcast_digest": b""}, {"roster": (1, 2)}, {"roster": (1, 2, 2, 4)},
        {"roster": (4, 3, 2, 1)}, {"roster": (-1, 2, 3, 4)}, {"roster": (1, 2, 3, 2**64)},
        {"roster": tuple(range(2**14 + 1))}, {"threshold": 2}, {"threshold": 5},
        {"sections": ()}, {"sections": (Section(**GOOD_SECTION),) * 2},
        {"sections": tuple(Section(**{**GOOD_SECTION, "name": str(i)}) for i in range(17))},
    ],
)  # fmt: skip
def test_params_are_validated(change):
    with pytest.raises(ConfigError):
        make_params(4, **change)


def test_overflow_is_refused_at_construction():
    n = 300
    with pytest.raises(ConfigError, match="32-bit"):
        make_params(n, ("g", 1, 24))
    assert isinstance(make_params(200, ("g", 1, 24)), AggregationParams)


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"])
def test_a_name_without_bytes_is_a_typed_error(name):
    with pytest.raises(ConfigError):
        Section(name=name, length=1, maximum=1, clip=1.0)


@pytest.mark.parametrize("clip", [10**400, float("inf"), float("nan"), 0.0, -1.0, 1.7e308])
def test_a_clip_that_cannot_be_used_is_a_typed_error(clip):
    with pytest.raises(ConfigError):
        Section(name="g", length=1, maximum=1, clip=clip)
