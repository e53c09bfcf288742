"""codream-messenger under DP: noisy sums over everybody touch data, and nothing else does."""

import numpy as np
import pytest
import torch

from codream_secure.aggregation.model_updates import model_digest
from codream_secure.aggregation.requests import (
    VERSION,
    EvaluateRequest,
    GradientRequest,
    LabelRequest,
    LabelTerms,
    ModelRequest,
    encode,
)
from codream_secure.config.rules import resolve, with_default_method
from codream_secure.config.settings import Config
from codream_secure.errors import RequestRefused, UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.models.tensors import tensors_of
from codream_secure.privacy.noisy_sum import noisy_terms
from codream_secure.runs.models import trained_models
from codream_secure.sites.run_terms import unfit_for_machines
from codream_secure.storage.checkpoint import decode
from codream_secure.storage.checkpoint import encode as encode_state

PRIVATE = {
    "method": "codream-messenger",
    "models": "linear,mlp",
    "messenger": "linear",
    "clients": 5,
    "dp_eps": 4.0,
    "dp_steps": 6,
    "rounds": 2,
    "dreams": 16,
    "dream_batches": 2,
    "kd_epochs": 1,
    "samples_per_client": 40,
    "validation": 0.0,
    "seed": 3,
}


def spied(simulation):
    """Return a list that gets every request with its sums."""
    seen, original = [], simulation.aggregator.sum

    def spy(request):
        answer = original(request)
        seen.append((encode(request), {n: t.tobytes() for n, t in answer.totals.items()}))
        return answer

    simulation.aggregator.sum = spy
    return seen


def whole(config, **how):
    simulation = Simulation(config, **how)
    return simulation, list(simulation.rounds())


def test_all_that_leaves_is_one_noisy_sum_of_class_means_and_those_of_gradients(tiny):
    simulation, history = whole(tiny(**PRIVATE))
    found = simulation.guarantee()
    names = [r.name for r in found.releases for _ in range(r.steps)]
    assert names == ["class means", *["summed gradients"] * 6]
    assert simulation.aggregator.steps == 7
    assert simulation.aggregator.unanswered_requests == 0
    assert 0.95 * 4 < found.epsilon <= 4
    assert len(history) == 2
    phases = simulation.ledger.by_phase()
    assert not any(phases["labels"].values())
    # The account that a client keeps for itself is the server's: it verified every sum.
    account = simulation.federation.members[0].client.noisy.sums.filter
    assert account.spent == pytest.approx(simulation.federation.sum_plan.filter.spent)


@pytest.mark.parametrize("threat_model", ["semi-honest", "malicious"])
def test_dropouts_change_the_noise_and_never_the_budget(tiny, threat_model):
    options = PRIVATE | {"dropout": 0.2, "threat_model": threat_model, "clients": 6}
    simulation, _ = whole(tiny(**options), compare_independent=False)
    assert simulation.guarantee().epsilon <= 4
    assert simulation.federation.sum_plan.charged == 7


def test_a_mark_in_the_own_models_shows_in_no_sum(tiny):
    """A model that touched data without noise answers nothing (--keep-models-home)."""
    sums = []
    for mark in (0.0, 1e3):
        config = tiny(**PRIVATE, keep_models_home=True)
        simulation = Simulation(config, compare_independent=False)
        with torch.no_grad():
            for member in simulation.federation.members.values():
                for weight in member.client.learner.model.parameters():
                    weight.add_(mark)
        seen = spied(simulation)
        list(simulation.rounds())
        sums.append(seen)
        assert all(m.client.learner.local_steps for m in simulation.federation.members.values())
    assert sums[0] == sums[1]
    assert len(sums[0]) == 7


def test_own_models_touch_no_data_unless_they_stay_at_home(tiny):
    simulation, _ = whole(tiny(**PRIVATE), compare_independent=False)
    for member in simulation.federation.members.values():
        assert member.client.learner.data is None
        assert member.client.learner.local_steps == 0


@pytest.mark.parametrize("home", [False, True])
def test_a_card_says_whether_a_model_was_trained_without_noise(tiny, home):
    simulation, _ = whole(tiny(**PRIVATE, keep_models_home=home), compare_independent=False)
    kept = trained_models(simulation)
    own, server = kept["client-0"], kept["server"]
    assert server.description.training.epsilon <= 4
    assert (own.description.training.epsilon is None) == home
    assert ("guard it" in own.files()["README.md"].decode()) == home


def test_a_client_answers_nothing_but_noisy_sums_for_the_model_that_it_was_sent(tiny):
    simulation = Simulation(tiny(**PRIVATE))
    client = simulation.federation.members[0].client
    plan = simulation.federation.sum_plan
    terms = noisy_terms(plan.next_terms())
    labels = LabelTerms(bits=8, clip=0.5, kind="probabilities", temperature=4.0, classes=10)
    state = tensors_of(simulation.server.student.model)
    shape = (16, 1, 8, 8)
    for asked in (
        LabelRequest(VERSION, 1, 0, shape, bytes(1024), labels),
        EvaluateRequest(VERSION, 1),
        ModelRequest(VERSION, 1, model_digest(state), (640, 10), (1.0, 1.0), 8),
        GradientRequest(VERSION, 1, 1, bytes(32), terms),
        GradientRequest(VERSION, 1, 1, model_digest(state), terms),  # the terms of class means
    ):
        with pytest.raises(RequestRefused):
            client.answer(encode(asked), 0)
    assert client.noisy.sums.filter.open == 0


def test_a_run_that_is_restored_goes_on_as_if_it_had_never_stopped(tiny):
    config = tiny(**PRIVATE)
    simulation = Simulation(config)
    rounds = simulation.rounds()
    next(rounds)
    kept = decode(encode_state(simulation.state(checkpoint_every=1)))
    charged = simulation.budget.charged
    next(rounds)
    again = Simulation(config)
    again.restore(kept, charged)
    (last,) = again.rounds()
    assert last == simulation.observer.history[-1]
    for name, weights in simulation.weights().items():
        assert all(torch.equal(v, again.weights()[name][n]) for n, v in weights.items())
    assert again.guarantee().releases == simulation.guarantee().releases
    # Sums that were made after the checkpoint stay charged.
    lost = Simulation(config)
    lost.restore(kept, charged + 2)
    list(lost.rounds())
    assert lost.guarantee().epsilon <= 4
    assert lost.budget.charged == 7


def test_without_class_means_the_transfer_set_is_noise(tiny):
    simulation, _ = whole(tiny(**PRIVATE, statistics_eps=0.0), compare_independent=False)
    assert {r.name for r in simulation.guarantee().releases} == {"summed gradients"}
    pixels = np.concatenate([batch.pixels for batch in simulation.dreams])
    assert 110 < pixels.mean() < 145


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"secure": False}, "needs masks"),
        ({"dp_noise": "skellam"}, "needs --dp-noise gaussian"),
        ({"dp_batch": 10}, "noisy sums train the common model"),
        ({"messenger_sums": 3}, "noisy sums train the common model"),
        ({"collaboration": False}, "--no-collaboration"),
        ({"method": "codream", "messenger": None, "keep_models_home": True}, "--keep-models-home"),
        ({"dp_unit": "client", "messenger": None}, "--dp-unit client"),
    ],
)
def test_what_means_nothing_is_refused(options, says):
    chosen = {k: v for k, v in (PRIVATE | options).items() if v is not None}
    if chosen.get("dp_unit") == "client":
        del chosen["dp_steps"]
    with pytest.raises(UserError, match=says):
        resolve(Config.from_options(chosen))


def test_class_means_that_leave_nothing_are_refused(tiny):
    with pytest.raises(UserError, match="leaves nothing of --dp-eps"):
        Simulation(tiny(**PRIVATE, statistics_eps=4.0))


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({"dp_eps": 8.0}, "codream-messenger"),
        ({"dp_eps": 8.0, "models": "lenet5,linear", "dropout": 0.1}, "codream-messenger"),
        ({"dp_eps": 8.0, "method": "codream"}, "codream"),
        ({"dp_eps": 8.0, "dp_batch": 20}, None),
        ({"dp_eps": 8.0, "secure": False}, None),
        ({"dp_eps": 8.0, "dp_unit": "client"}, None),
        ({"clients": 4}, None),
    ],
)
def test_the_method_that_simulate_takes_where_none_is_named(given, method):
    assert with_default_method(given).get("method") == method


def test_it_is_refused_over_machines(tiny):
    assert "can only be simulated" in unfit_for_machines(resolve(tiny(**PRIVATE)))
