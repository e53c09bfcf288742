"""Client-level DP: labels alone leave a client, clipped, rotated, rounded, with its noise."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_secure.aggregation.aggregator import FieldSum
from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import (
    VERSION,
    DreamRequest,
    LabelRequest,
    LabelTerms,
    encode,
)
from codream_secure.aggregation.sections import sections
from codream_secure.dreaming.labels import label_mean
from codream_secure.errors import RequestRefused, UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.learning.learner import PlainLearner
from codream_secure.privacy.label_grid import LabelGrid

GRID = LabelGrid(6, 10)
SEED, KEY = bytes(range(32)), bytes(range(32, 64))


def client_level(tiny, **options):
    asked = {"dp_eps": 8.0, "dp_unit": "client", "warmup_epochs": 1, "accept_low_utility": True}
    return tiny(**{**asked, "clients": 6, **options})


number = st.one_of(st.floats(-2, 2), st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))


@settings(max_examples=80, deadline=None)
@given(st.lists(number, min_size=60, max_size=60), st.binary(min_size=32, max_size=32))
def test_whatever_a_client_holds_its_integers_are_no_longer_than_the_bound(values, key):
    integers = GRID.integers(np.array(values), SEED, key)
    assert int((integers**2).sum()) <= GRID.l2**2


def test_no_stack_of_probabilities_is_clipped():
    votes = np.eye(10)[np.arange(6)] - 0.1
    assert np.linalg.norm(votes) == pytest.approx(GRID.clip)


def test_rounding_is_nearly_free():
    """Sensitivity grows by less than one percent over clipping alone."""
    grid = LabelGrid(64, 10)
    assert grid.l2 < 1.01 * grid.clip * grid.scale


def test_the_mean_of_roundings_is_the_stack():
    values = np.random.default_rng(0).dirichlet(np.ones(10), 6).ravel() - 0.1
    keys = [bytes([k, *KEY[1:]]) for k in range(200)]
    total = sum(GRID.integers(values, SEED, key) for key in keys)
    back = GRID.values(total.astype(np.float64), SEED) / len(keys)
    assert np.abs(back - values).max() < 6 / (GRID.scale * math.sqrt(len(keys)))


def test_rotation_spreads_a_single_label_over_all_coordinates():
    values = np.zeros(60)
    values[3] = 1.0
    integers = GRID.integers(values, SEED, KEY)
    assert np.abs(integers).max() <= 1 + math.ceil(GRID.scale / math.sqrt(GRID.length))


# In a run ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Return the list of all requests that clients answer in what follows."""
    requests = []
    original = decode_request

    def note(data):
        requests.append(original(data))
        return requests[-1]

    monkeypatch.setattr("codream_secure.federation.client.decode_request", note)
    return requests


@pytest.mark.parametrize("threat_model", ["semi-honest", "malicious"])
@pytest.mark.parametrize("dp_noise", ["skellam", "gaussian"])
def test_clients_are_asked_for_noisy_labels_and_nothing_else(tiny, asked, threat_model, dp_noise):
    simulation = Simulation(
        client_level(tiny, rounds=3, threat_model=threat_model, dp_noise=dp_noise)
    )
    list(simulation.rounds())
    assert len(asked) == 3 * 6
    assert all(isinstance(r, LabelRequest) and r.labels.noisy is not None for r in asked)
    assert {r.labels.noisy.noise for r in asked} == {dp_noise}
    found = simulation.guarantee()
    assert (found.unit, found.steps) == ("client", 3)
    assert [r.name for r in found.releases] == ["labels"]
    assert found.epsilon <= 8
    if threat_model == "malicious":
        assert found.noise_colluders == simulation.aggregator.colluders


def test_local_training_stays_what_it_is_without_dp(tiny):
    simulation = Simulation(client_level(tiny))
    learners = [m.client.learner for m in simulation.federation.members.values()]
    assert all(isinstance(learner, PlainLearner) for learner in learners)
    assert simulation.federation.plan is None


def test_a_lying_server_gets_no_gradient_no_plain_labels_and_no_second_answer(tiny, asked):
    simulation = Simulation(client_level(tiny, rounds=2))
    list(simulation.rounds())
    client, last = simulation.federation.members[0].client, asked[-1]
    gradient = DreamRequest(VERSION, 1, 0, 0, last.shape, last.dreams, 4, 1.0, 1.0, 0.0, 1.0)
    with pytest.raises(RequestRefused, match="nothing else"):
        client.answer(encode(gradient), 90)
    terms = LabelTerms(8, 0.5, "probabilities", 1.0, 10)
    plain = LabelRequest(VERSION, 1, 0, last.shape, last.dreams, terms)
    with pytest.raises(RequestRefused, match="nothing else"):
        client.answer(encode(plain), 91)
    again = LabelRequest(
        VERSION,
        9,
        0,
        last.shape,
        last.dreams,
        LabelTerms(8, 0.5, "probabilities", 1.0, 10, noisy=last.labels.noisy),
    )
    with pytest.raises(RequestRefused, match="all 2 noisy sums are spent"):
        client.answer(encode(again), 92)
    without_dp = Simulation(tiny()).federation.members[0].client
    with pytest.raises(RequestRefused, match="nothing else"):
        without_dp.answer(encode(again), 0)


def test_labels_that_are_aborted_are_charged_and_not_asked_for_again(tiny, asked):
    simulation = Simulation(client_level(tiny, rounds=2, dropout=1.0))
    list(simulation.rounds())
    assert simulation.dreams == []
    found = simulation.guarantee()
    assert found.steps == 2
    assert 7.8 < found.epsilon <= 8


def test_the_decoded_mean_is_that_of_the_clients_but_for_the_noise(tiny, asked):
    """At a huge budget the noisy mean is the mean."""
    simulation = Simulation(client_level(tiny, dp_eps=1000.0, dreams=16))
    request = None
    for group in simulation.groups:
        group.begin_round(1)
        (labelled,) = group.synthesise(1, None, lambda: None)
    request = asked[0]
    clients = [m.client for m in simulation.federation.members.values()]
    dreams = simulation.federation.scale.from_pixels(labelled.pixels)
    expected = sum(c.teacher(dreams).softmax(dim=1) for c in clients) / len(clients)
    assert request.labels.noisy is not None
    assert (labelled.targets - expected).abs().max() < 0.12
    assert (labelled.targets - expected).abs().mean() < 0.03


def test_targets_are_probabilities_however_large_the_noise(tiny, asked):
    simulation = Simulation(client_level(tiny, dp_eps=0.5))
    list(simulation.rounds())
    targets = simulation.dreams[0].targets
    assert (targets >= 0).all()
    assert np.allclose(targets.sum(dim=1), 1, atol=1e-5)


def test_the_total_of_zero_noise_codes_decodes_exactly(tiny, asked):
    list(Simulation(client_level(tiny)).rounds())
    request = asked[0]
    grid = LabelGrid(request.shape[0], request.labels.classes)
    offset = request.labels.noisy.maximum // 2
    totals = np.full(grid.length, 6 * offset, np.uint32)
    mean = label_mean(FieldSum({"labels": totals}, 6, sections(request)), request)
    assert np.allclose(mean + 0.5, 0.1)


def test_resuming_charges_what_was_charged(tiny):
    whole = Simulation(client_level(tiny, rounds=3))
    rounds = whole.rounds()
    next(rounds)
    state = whole.state(checkpoint_every=1)
    again = Simulation(client_level(tiny, rounds=3))
    again.restore(state, charged=2)
    list(again.rounds())
    assert again.guarantee().steps == 3
    # Round 1's labels, a second sum that the crash swallowed, and one more: then none is left.
    assert len(again.dreams) == 2
    assert all(m.client._releases.budget.charged == 3 for m in again.federation.members.values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"secure": False}, "needs masks"),
        ({"dp_delta": 0.2}, "allows one of 6 to be published"),
        ({"collaboration": False}, "needs masks|cannot be used with --no-collaboration"),
        ({"method": "codream-fast"}, "needs --method codream"),
        ({"adaptive": "jsd"}, "no gradient is asked for"),
        ({"dp_steps": 5}, "labels alone are released"),
        ({"statistics_eps": 1.0}, "labels alone are released"),
        ({"secure_noise": True}, "labels alone are released"),
        ({"kd_temperature": 2.0}, "labels are probabilities"),
        ({"validation": 0.2}, "choosing by private data"),
        ({"accept_low_utility": False, "dreams": 400}, "and 1 takes [0-9]+ clients"),
    ],
)
def test_what_client_level_cannot_have_is_refused_in_one_line(tiny, options, told):
    with pytest.raises(UserError, match=told) as error:
        Simulation(client_level(tiny, **options))
    assert "\n" not in str(error.value)


def test_the_predicted_number_of_clients_is_enough(tiny):
    with pytest.raises(UserError) as error:
        Simulation(client_level(tiny, accept_low_utility=False, dreams=100, rounds=2))
    needed = int(str(error.value).split(" takes ")[1].split()[0])
    config = client_level(
        tiny, accept_low_utility=False, dreams=100, rounds=2, clients=needed, samples_per_client=4
    )
    Simulation(dataclasses.replace(config))


def test_public_dreams_ask_the_released_student_alone(tiny):
    simulation = Simulation(client_level(tiny, rounds=2, dream_steps=3))
    assert simulation.server.asked_student(1) is None
    assert simulation.server.asked_student(2) is not None
    list(simulation.rounds())
    assert simulation.ledger.per_client("up") > 0


def test_the_run_says_beforehand_what_labels_will_be_worth(run):
    options = ("--clients", 6, "--samples-per-client", 4, "--dp-eps", 8, "--dp-unit", "client")
    code, _, err = run("simulate", *options, "--dreams", 4, "--rounds", 1, "--models", "linear")
    assert code == 0
    assert "predicted signal to noise 1.6 a release, and 1 takes 4 clients" in err
