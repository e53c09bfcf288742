"""The forecast of a noisy sum, against sums that are really drawn."""

import math

import numpy as np
import pytest

from codream_secure.errors import UserError
from codream_secure.privacy.forecast import predict
from codream_secure.privacy.noise_search import noise_multiplier_for

ASKED = {
    "contributions": 2000,
    "clients": 10,
    "dimensions": 400,
    "releases": 4,
    "epsilon": 2.0,
    "delta": 1e-5,
}


@pytest.mark.parametrize("agreement", [1.0, 0.3])
def test_signal_and_cosine_are_those_of_sums_that_are_drawn(agreement):
    told = predict("example", **ASKED, agreement=agreement)
    n, d, releases = ASKED["contributions"], ASKED["dimensions"], ASKED["releases"]
    direction = np.zeros(d)
    direction[0] = agreement * n  # contributions of norm 1
    noise = np.random.default_rng(0).normal(0, told.noise_multiplier, (200, releases, d))
    mean = direction + noise.mean(axis=1)
    cosine = mean[:, 0] / np.linalg.norm(mean, axis=1)
    assert cosine.mean() == pytest.approx(told.cosine, abs=0.005)
    size = np.linalg.norm(noise[:, 0], axis=1).mean()
    assert agreement * n / size == pytest.approx(told.ratio_each, rel=0.01)
    assert told.ratio == pytest.approx(told.ratio_each * math.sqrt(releases))


def test_more_releases_share_the_budget_and_gain_nothing():
    one, many = (predict("client", **{**ASKED, "releases": t}) for t in (1, 16))
    assert many.ratio == one.ratio
    assert many.noise_multiplier == 4 * one.noise_multiplier
    assert one.noise_multiplier == noise_multiplier_for(2.0, 1e-5, 1.0, 1)


def test_as_many_contributions_as_needed_give_a_ratio_of_one():
    needed = predict("client", **ASKED).needed
    enough, less = (
        predict("client", **{**ASKED, "contributions": n}).ratio for n in (needed, needed - 1)
    )
    assert less < 1 <= enough


def test_the_bits_hold_what_a_client_can_send():
    told = predict("client", **ASKED)
    grid = 5 * math.sqrt(ASKED["dimensions"])
    # 7 of 10 stay, and one of these may tell its share: 6 shares make up the noise.
    draw = 14 * told.noise_multiplier * grid / math.sqrt(6)
    assert 2**told.bits >= 2 * 10 * (grid + draw) > 2 ** (told.bits - 1)


@pytest.mark.parametrize(
    "wrong",
    [{"contributions": 0}, {"clients": 2}, {"dimensions": 0}, {"releases": 0}, {"epsilon": 0.0}],
    ids=str,
)
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(UserError):
        predict("client", **{**ASKED, **wrong})


@pytest.mark.parametrize("agreement", [0.0, 1.1, math.nan])
def test_an_agreement_is_a_share(agreement):
    with pytest.raises(UserError, match="agreement"):
        predict("client", **ASKED, agreement=agreement)
