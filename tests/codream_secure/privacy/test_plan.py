"""A whole private run charges what was planned and reports what was charged."""

import pytest

from codream_secure.config.rules import resolve
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.privacy import guarantee as guarantee_module
from codream_secure.privacy.accounting import dpsgd_epsilon
from codream_secure.privacy.plan import PrivacyPlan
from codream_secure.runs.summary import row_of

SPEC = InputSpec(1, 8, 8, 10)
# The noise for these is found quickly where batches are sampled: PLD takes long if noise is small.
CHEAP = {"dp_eps": 1.0, "dp_steps": 40}


def private(tiny, **options):
    base = {"dp_eps": 8.0, "models": "mlp", "dp_steps": 5, "statistics_eps": 0}
    return tiny(**{**base, **options})


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rounds", [1, 2, 3, 7])
def test_warm_up_and_rounds_add_up_to_the_budget(tiny, warmup, rounds):
    plan = PrivacyPlan(resolve(private(tiny, dp_warmup=warmup, rounds=rounds)), 400, SPEC)
    total = plan.warmup_steps + sum(plan.round_steps(k) for k in range(1, rounds + 1))
    assert total == 5


def test_no_public_figure_depends_on_the_size_of_a_clients_data(tiny):
    plan = PrivacyPlan(resolve(private(tiny, dp_batch=25, **CHEAP)), 400, SPEC)
    assert plan.sampling_rate == 0.25
    assert plan._batch == 25


@pytest.mark.parametrize(("examples", "batch"), [(400, 100), (4000, 512)])
def test_the_default_batch_is_an_even_share_up_to_a_limit(tiny, examples, batch):
    plan = PrivacyPlan(resolve(private(tiny, **CHEAP)), examples, SPEC)
    assert plan._batch == batch
    assert plan.sampling_rate == batch / (examples // 4)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
@pytest.mark.parametrize("acquisition", ["joint", "two-stage"])
def test_a_run_spends_the_budget_whatever_drops_out(tiny, dropout, acquisition):
    simulation = Simulation(
        private(tiny, rounds=2, dropout=dropout, acquisition=acquisition, dp_warmup=0.4)
    )
    list(simulation.rounds())
    guarantee = simulation.guarantee()
    assert guarantee.steps == 5
    assert 7.9 < guarantee.epsilon <= 8.0
    assert guarantee.epsilon == dpsgd_epsilon(
        guarantee.noise_multiplier, guarantee.sampling_rate, 5, guarantee.delta
    )


def test_an_interrupted_run_reports_what_was_charged_so_far(tiny):
    simulation = Simulation(private(tiny, rounds=4, dp_warmup=0.2))
    next(iter(simulation.rounds()))
    guarantee = simulation.guarantee()
    assert guarantee.steps == 2
    assert guarantee.epsilon < 8.0
    assert simulation.epsilon() == guarantee.epsilon


def test_a_row_of_progress_takes_one_epsilon_and_no_group_privacy(tiny, monkeypatch):
    """Group privacy of sampled batches once took ten seconds in every round."""
    simulation = Simulation(private(tiny, dp_batch=25, **CHEAP))
    next(iter(simulation.rounds()))
    plan = simulation.federation.plan
    expected = dpsgd_epsilon(plan.noise_multiplier, plan.sampling_rate, 40, 1e-5)

    def refuse(*_):
        raise AssertionError("group privacy")

    monkeypatch.setattr(guarantee_module, "group_epsilons", refuse)
    assert row_of(simulation, simulation.observer.history[-1]).epsilon == expected


def test_a_delta_that_allows_publishing_an_example_is_refused(tiny):
    with pytest.raises(UserError, match=r"--dp-delta 0.01 allows one of 400 to be published"):
        PrivacyPlan(resolve(private(tiny, dp_delta=0.01)), 400, SPEC)


def test_independent_training_has_a_budget_of_its_own(tiny):
    simulation = Simulation(private(tiny))
    list(simulation.rounds())
    spent = {role: b.charged for (role, _), b in simulation.federation.plan._budgets.items()}
    assert spent == {"client": 5, "twin": 5}


def test_under_dp_there_is_no_validation_part_and_the_last_round_is_reported(tiny):
    simulation = Simulation(private(tiny, rounds=2))
    list(simulation.rounds())
    assert simulation.observer.history[0].validation is None
    assert simulation.observer.reported() is simulation.observer.history[-1]


def test_noise_comes_from_the_operating_system_unless_a_seed_is_given(tiny):
    seeded = Simulation(private(tiny))
    assert seeded.guarantee().noise_source == "seeded"
    fresh = Simulation(private(tiny, seed=None))
    assert fresh.guarantee().noise_source == "os"
    first = fresh.federation.client_models()[0].state_dict()
    second = Simulation(private(tiny, seed=None)).federation.client_models()[0].state_dict()
    assert any((first[name] != second[name]).any() for name in first)


def test_no_request_of_a_private_run_asks_for_batch_statistics(tiny, monkeypatch):
    simulation = Simulation(private(tiny))
    asked = []
    original = simulation.aggregator.sum
    monkeypatch.setattr(simulation.aggregator, "sum", lambda r: asked.append(r) or original(r))
    list(simulation.rounds())
    assert asked
    assert all(getattr(request, "bn_weight", 0) == 0 for request in asked)


def test_secure_noise_is_charged_and_keeps_the_budget(tiny):
    simulation = Simulation(private(tiny, secure_noise=True))
    list(simulation.rounds())
    found = simulation.guarantee()
    assert found.accountant == "pld"
    assert 7.9 < found.epsilon <= 8.0
    assert found.sampling_rate == 1


def test_secure_noise_is_for_full_batches(tiny):
    with pytest.raises(UserError, match="--secure-noise has no proof for sampled batches"):
        Simulation(private(tiny, secure_noise=True, dp_batch=5))
