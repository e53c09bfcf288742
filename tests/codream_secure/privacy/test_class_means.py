"""Class means: one example's share is bounded, the noise is there, and they are of use."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import StatisticsRequest, encode
from codream_secure.data.spec import InputSpec
from codream_secure.errors import RequestRefused, UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.privacy.accounting import privacy_cost
from codream_secure.privacy.class_means import (
    ClassMeanImages,
    ClassMeanTerms,
    contribution,
    released,
)
from codream_secure.privacy.integer_noise import IntegerNoise
from codream_secure.privacy.noisy_sum import NoisySum
from protocols.phases import Phase

SPEC = InputSpec(1, 4, 4, 3)
KEY = bytes(range(32))


def terms(variance=1, share=50, clients=4):
    return terms_of(SPEC, variance, share, clients)


def terms_of(spec, variance, share=50, clients=4):
    kind = released(spec, share)
    chosen = NoisySum.of(
        length=kind.length,
        l2=kind.l2,
        variance=variance,
        largest=kind.largest,
        clients=clients,
        noise="skellam",
    )
    return ClassMeanTerms.of(spec, chosen)


def examples(count, seed=0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(SPEC.classes, size=count)
    means = draw.random((SPEC.classes, 1, 4, 4))
    return (means[labels] + 0.1 * draw.standard_normal((count, 1, 4, 4))).clip(0, 1), labels


def without_noise(images, labels, chosen, key=KEY):
    noise = IntegerNoise.skellam(chosen.sum.variance).draw(chosen.sum.length, key)
    return contribution(images, labels, chosen, key).astype(np.int64) - chosen.sum.offset - noise


pixel = st.one_of(
    st.floats(0, 1, width=32), st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e300])
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(pixel, min_size=16, max_size=16), st.integers(0, SPEC.classes - 1), st.integers(0, 30)
)
def test_one_example_moves_the_integers_by_at_most_the_sensitivity(image, label, others):
    chosen = terms()
    images, labels = examples(others)
    added = np.concatenate([images, np.array(image).reshape(1, 1, 4, 4)])
    before = without_noise(images, labels, chosen)
    after = without_noise(added, np.append(labels, label), chosen)
    moved = after - before
    assert (moved**2).sum() <= chosen.sum.l2**2
    assert abs(moved).sum() <= chosen.sum.mechanism(1).l1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60))
def test_cutting_off_a_sum_brings_neighbours_no_further_apart(count):
    chosen = dataclasses.replace(terms(), sum=dataclasses.replace(terms().sum, cap=7))
    images, labels = examples(count)
    moved = without_noise(images, labels, chosen) - without_noise(images[1:], labels[1:], chosen)
    assert (moved**2).sum() <= chosen.sum.l2**2


def test_codes_stay_within_the_section_whatever_the_data():
    chosen = terms(variance=10_000, share=1)
    images, labels = np.ones((500, 1, 4, 4)), np.zeros(500, np.int64)
    images[:, :, :2] = 0
    codes = contribution(images, labels, chosen, KEY)
    assert codes.min() >= 0
    assert codes.max() <= chosen.sum.maximum


@pytest.mark.parametrize("survivors", [3, 4, 6, 10])
def test_the_noise_in_the_sum_is_that_of_the_survivors(survivors):
    chosen = terms_of(InputSpec(1, 8, 8, 100), 400, clients=10)
    nothing = np.zeros((0, 1, 8, 8)), np.zeros(0, np.int64)
    total = sum(
        contribution(*nothing, chosen, bytes([c]) * 32).astype(np.int64) for c in range(survivors)
    )
    noise = total - survivors * chosen.sum.offset
    spread = noise.var() / (400 * survivors)
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], noise.size - 1) / (noise.size - 1)
    assert low < spread < high


def test_decoding_gives_the_means_back():
    chosen = terms(variance=1)
    images, labels = examples(3000)
    parts = np.array_split(np.arange(3000), 4)
    wide = dataclasses.replace(chosen, sum=dataclasses.replace(chosen.sum, cap=400_000))
    total = sum(
        contribution(images[rows], labels[rows], wide, bytes([c]) * 32).astype(np.int64)
        for c, rows in enumerate(parts)
    )
    found = ClassMeanImages.decode(total.astype(np.uint32), 4, wide, 1000).means.numpy()
    for c in range(SPEC.classes):
        assert abs(found[c] - images[labels == c].mean(axis=0)).max() < 0.03


def test_a_class_that_nobody_has_is_grey_noise_and_no_error():
    chosen = terms(variance=100)
    images, _ = examples(40)
    codes = contribution(images, np.zeros(40, np.int64), chosen, KEY)
    means = ClassMeanImages.decode(codes, 1, chosen, 13.0).means
    assert means.isfinite().all()
    assert 0 <= means.min() <= means.max() <= 1


# In a run ----------------------------------------------------------------------------------------


def private(tiny, **options):
    return tiny(dp_eps=8.0, models="mlp", dp_steps=5, **options)


def test_a_run_reports_the_noise_that_was_there(tiny):
    simulation = Simulation(private(tiny, clients=6))
    list(simulation.rounds())
    plan = simulation.federation.plan
    found = simulation.guarantee()
    assert [r.name for r in found.releases] == ["local training", "class means"]
    # Six survivors, one of whom the server may know; planned for a threshold of five.
    assert plan.class_mean_shares == 5
    assert found.noise_colluders == 1
    assert found.releases[1].mechanism.shares == 5
    assert found.releases[1].mechanism.variance == plan.class_means.sum.variance
    assert found.epsilon == privacy_cost(found.releases, found.delta).epsilon
    assert found.epsilon <= 8.0
    assert plan.class_means_plan.planned().mechanism == plan.class_means.sum.mechanism(4)
    planned = privacy_cost(
        (found.releases[0], plan.class_means_plan.planned()), found.delta
    ).epsilon
    assert 7.9 < planned <= 8.0
    assert simulation.server.images is not None


def test_a_release_that_is_aborted_is_charged_and_the_run_goes_on(tiny):
    simulation = Simulation(private(tiny, dropout=1.0))
    list(simulation.rounds())
    assert simulation.server.images is None
    names = [r.name for r in simulation.guarantee().releases]
    assert names == ["local training", "class means"]


def test_the_lying_server_gets_no_second_release_and_none_on_other_terms(tiny):
    simulation = Simulation(private(tiny))
    client = simulation.federation.members[0].client
    request = simulation.federation.plan.class_means.request()
    for name in ("l2", "variance", "cap", "maximum"):
        wrong = msgspec.structs.replace(request.sum, **{name: getattr(request.sum, name) - 1})
        other = msgspec.structs.replace(request, sum=wrong)
        with pytest.raises(RequestRefused, match="terms"):
            client.answer(encode(other), 0)
    first = client.answer(encode(request), 0)["statistics"]
    assert first.size == simulation.federation.plan.class_means.sum.length
    with pytest.raises(RequestRefused, match="answered before"):
        client.answer(encode(request), 1)


def test_without_dp_a_client_releases_no_statistics(tiny):
    client = Simulation(tiny()).federation.members[0].client
    with pytest.raises(RequestRefused, match="terms"):
        client.answer(encode(terms().request()), 0)


def test_the_server_sees_masked_codes_only(tiny):
    """The masked input differs from the codes in nearly all coordinates, and only sums come out."""
    seen = {}

    def tap(phase, direction, client, message):
        if phase is Phase.MASKED_INPUT and direction == "up":
            seen.setdefault(client, message)

    simulation = Simulation(private(tiny), tap=tap)
    list(simulation.rounds())
    for client, member in simulation.federation.members.items():
        codes = member.client._statistics.codes().astype("<u4").tobytes()
        assert codes[:64] not in seen[client]


def test_noise_is_fresh_unless_a_seed_is_given(tiny):
    def key(**options):
        return Simulation(private(tiny, **options)).federation.plan.noise_key(0)

    assert key() == key()
    assert key(seed=None) != key(seed=None)


def test_a_request_on_the_wire_is_canonical():
    request = terms().request()
    assert decode_request(encode(request)) == request
    assert isinstance(decode_request(encode(request)), StatisticsRequest)
    terms_of_it = msgspec.structs.replace(request.sum, maximum=1 << 25)
    huge = msgspec.structs.replace(request, sum=terms_of_it)
    with pytest.raises(RequestRefused, match="no masked input"):
        decode_request(encode(huge))


def test_a_budget_that_leaves_nothing_for_training_is_refused(tiny):
    with pytest.raises(UserError, match="leaves nothing of --dp-eps"):
        Simulation(private(tiny, statistics_eps=8.0))
    with pytest.raises(UserError, match="--noise-colluders must be below the threshold of 3"):
        Simulation(private(tiny, noise_colluders=3))


def test_more_colluders_need_more_noise(tiny):
    few, many = (
        Simulation(private(tiny, noise_colluders=c)).federation.plan.class_means.sum.variance
        for c in (0, 2)
    )
    assert many == pytest.approx(3 * few, rel=0.01)


@pytest.mark.parametrize("options", [{"secure": False}, {"collaboration": False}])
def test_without_masks_there_is_no_release(tiny, options):
    simulation = Simulation(private(tiny, **options))
    assert simulation.federation.plan.class_means is None
    assert [r.name for r in simulation.federation.plan.guarantee().releases] == ["local training"]
