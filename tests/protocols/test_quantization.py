"""SPEC 7: clip, unbiased rounding, decoding of sums, and the clip rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.primitives.field import PrimeField
from protocols.quantization import CLIP_MAX, CLIP_MAX_RATIO, CLIP_MIN, Quantizer, next_clip, repairs

SEED = bytes(range(32))


def encode(quantizer, values, seed=SEED, step=0, section="gradient"):
    return quantizer.encode(np.asarray(values), seed=seed, step=step, section=section)


@given(
    levels=st.integers(1, 2**24),
    clip=st.floats(1e-4, 1e4),
    clients=st.integers(1, 12),
    values=st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=20),
)
def test_a_decoded_sum_stays_within_the_documented_bound(levels, clip, clients, values):
    quantizer = Quantizer(levels, clip)
    inputs = [np.roll(values, k) * (1 - k / 7) for k in range(clients)]
    codes = [encode(quantizer, x, seed=bytes([k] * 32)) for k, x in enumerate(inputs)]
    total = np.sum(codes, axis=0, dtype=np.int64)
    truth = np.sum([np.clip(x, -clip, clip) for x in inputs], axis=0)
    error = np.abs(quantizer.decode_sum(total, clients) - truth)
    assert (error <= clients * quantizer.resolution * (1 + 1e-9)).all()


@given(levels=st.integers(1, 2**17), clients=st.integers(1, 300))
def test_the_largest_sum_fits_the_field_that_params_choose(levels, clients):
    quantizer = Quantizer(levels, 1.0)
    largest = encode(quantizer, np.full(3, 9.0))
    assert (largest == quantizer.levels).all()
    assert clients * int(largest[0]) < PrimeField.for_sum(clients, levels).p


@pytest.mark.parametrize("levels", [1, 2, 3, 10, 15, 255])
@pytest.mark.parametrize("value", [-1.0, -0.33, 0.0, 0.007, 0.5, 0.999, 1.0])
def test_rounding_is_unbiased_and_within_one_level(levels, value):
    quantizer, count = Quantizer(levels, 1.0), 40_000
    decoded = quantizer.decode_sum(encode(quantizer, np.full(count, value)), 1)
    assert np.abs(decoded - value).max() < quantizer.resolution
    # Five standard errors of a mean whose variance is at most resolution**2 / 4.
    assert abs(decoded.mean() - value) <= 5 * quantizer.resolution / 2 / np.sqrt(count)


def test_variance_of_a_sum_is_within_the_documented_bound():
    quantizer, clients, size = Quantizer(3, 1.0), 10, 20_000
    codes = [encode(quantizer, np.zeros(size), seed=bytes([k] * 32)) for k in range(clients)]
    decoded = quantizer.decode_sum(np.sum(codes, axis=0, dtype=np.int64), clients)
    bound = clients * quantizer.resolution**2 / 4
    assert 0.9 * bound < decoded.var() < 1.1 * bound


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_counts_as_zero_and_infinity_as_the_clip(dtype):
    """A refusal would tell the server something of the input (SPEC 7.1)."""
    quantizer = Quantizer(255, 0.5)
    broken = np.tile(np.array([0.25, np.nan, np.inf, -np.inf], dtype), 500)
    repaired = np.tile(np.array([0.25, 0.0, 0.5, -0.5], dtype), 500)
    assert (encode(quantizer, broken) == encode(quantizer, repaired)).all()
    assert repairs(broken) == 1500
    assert repairs(repaired) == 0


@pytest.mark.parametrize(
    ("levels", "clip"), [(0, 1.0), (2**24 + 1, 1.0), (4, 0.0), (4, -1.0), (4, np.inf)]
)
def test_bad_parameters_are_refused(levels, clip):
    with pytest.raises(ConfigError):
        Quantizer(levels, clip)


def test_the_rounding_stream_depends_on_seed_step_and_section_and_on_nothing_else():
    quantizer = Quantizer(1, 1.0)
    zeros = np.zeros(256)
    first = encode(quantizer, zeros)
    np.random.default_rng(1).random(10)
    assert (encode(quantizer, zeros) == first).all()
    for changed in ({"seed": bytes(32)}, {"step": 1}, {"section": "labels"}):
        assert (encode(quantizer, zeros, **changed) != first).any()


@pytest.mark.parametrize("shape", [(0,), (), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_shape_and_float_dtype_is_flattened(shape, dtype):
    assert encode(Quantizer(15, 1.0), np.zeros(shape, dtype)).shape == (int(np.prod(shape)),)


def test_a_strided_view_is_encoded_like_its_copy():
    values = np.linspace(-1, 1, 60).reshape(6, 10)[::2, ::3]
    quantizer = Quantizer(15, 1.0)
    assert (encode(quantizer, values) == encode(quantizer, values.copy())).all()


@given(
    bits=st.integers(1, 16),
    clip=st.floats(CLIP_MIN, CLIP_MAX),
    spread=st.floats(0, 1e6),
    count=st.integers(1, 100),
)
def test_the_clip_moves_by_a_bounded_factor_and_stays_in_the_range_of_the_policy(
    bits, clip, spread, count
):
    quantizer = Quantizer(2**bits - 1, clip)
    following = next_clip(quantizer, np.array([spread, -spread, spread]), count)
    assert clip / CLIP_MAX_RATIO <= following <= clip * CLIP_MAX_RATIO
    assert CLIP_MIN <= following <= CLIP_MAX


@pytest.mark.parametrize(("bits", "correlation"), [(1, 0.2), (2, 0.0), (4, 0.0), (8, 0.2)])
@pytest.mark.parametrize("start", [1.0, 1e-5])
def test_the_clip_settles_on_the_signal_and_not_on_its_own_rounding_noise(bits, correlation, start):
    """With one bit a saturated input looks like rounding: only what clients share is seen."""
    clients, size, spread, clip = 10, 4096, 0.01, start
    draw = np.random.default_rng(0)
    common = np.sqrt(correlation) * draw.normal(0, spread, size)
    inputs = common + np.sqrt(1 - correlation) * draw.normal(0, spread, (clients, size))
    for step in range(30):
        quantizer = Quantizer(2**bits - 1, clip)
        codes = [
            encode(quantizer, x, seed=bytes([k] * 32), step=step) for k, x in enumerate(inputs)
        ]
        mean = quantizer.decode_sum(np.sum(codes, axis=0, dtype=np.int64), clients) / clients
        clip = next_clip(quantizer, mean, clients)
    assert spread / 2 < clip < 5 * spread
