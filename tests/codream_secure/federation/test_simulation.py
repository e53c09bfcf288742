"""Whole tiny runs."""

import sys

import numpy as np
import pytest
import torch

from codream_secure.errors import UserError
from codream_secure.federation.run import Run
from codream_secure.federation.simulation import Simulation

# A convolutional network with BatchNorm that trains quickly.
SMALL = {"models": "resnet8", "width": 8, "samples_per_client": 60}


def run(config, **how):
    simulation = Simulation(config, **how)
    history = list(simulation.rounds())
    return simulation, history


def dreams_of(simulation):
    return [(d.pixels.tobytes(), d.targets.numpy().tobytes()) for d in simulation.dreams]


@pytest.mark.parametrize("models", ["resnet8", "mlp,linear"])
@pytest.mark.parametrize("dropout", [0.0, 0.15])
def test_masks_change_no_bit_of_dreams_labels_or_models(tiny, models, dropout):
    options = {"models": models, "dropout": dropout, "rounds": 2, "samples_per_client": 60}
    masked, with_masks = run(tiny(**options))
    plain, without = run(tiny(**options, secure=False))
    assert dreams_of(masked) == dreams_of(plain)
    assert with_masks == without
    assert masked.aggregator.aborted_steps == plain.aggregator.aborted_steps


def test_a_run_is_reproducible_from_its_seed(tiny):
    first, again = run(tiny(**SMALL)), run(tiny(**SMALL))
    assert dreams_of(first[0]) == dreams_of(again[0])
    assert first[1] == again[1]
    other = run(tiny(**SMALL, seed=1))
    assert dreams_of(first[0]) != dreams_of(other[0])


def test_different_architectures_learn_in_one_federation(tiny):
    simulation, history = run(tiny(models="resnet8,lenet5,mlp"))
    assert simulation.federation.model_names == ("resnet8", "lenet5", "mlp", "resnet8")
    assert len(history[-1].clients) == 4


def test_independent_training_takes_as_many_local_steps(tiny):
    simulation, _ = run(tiny(rounds=2, local_epochs=1))
    for member in simulation.federation.members.values():
        assert member.twin.local_steps == member.client.learner.local_steps > 0


def test_a_run_with_too_many_dropouts_goes_on_without_dreams(tiny):
    simulation, history = run(tiny(dropout=1.0, rounds=2))
    assert simulation.unlabelled_rounds == 2
    assert simulation.aggregator.aborted_steps == simulation.aggregator.steps > 0
    assert len(history) == 2
    assert simulation.dreams == []


def test_clients_learn_from_dreams(tiny):
    """Not a benchmark: a student that saw nothing but dreams must know most digits."""
    config = tiny(
        clients=4,
        models="resnet8",
        partition="dirichlet:0.3",
        rounds=2,
        dreams=128,
        dream_steps=15,
        kd_epochs=15,
        warmup_epochs=6,
    )
    _, history = run(config)
    assert history[-1].clients_mean > history[-1].independent_mean + 0.02
    assert history[-1].server > 0.4


@pytest.mark.parametrize("labels", ["probabilities", "logits"])
@pytest.mark.parametrize("acquisition", ["joint", "two-stage"])
def test_label_kinds_and_orders_run(tiny, labels, acquisition):
    simulation, _ = run(tiny(labels=labels, acquisition=acquisition, local_epochs=1))
    targets = simulation.dreams[0].targets.numpy()
    assert targets.sum(1) == pytest.approx(np.ones(6), abs=1e-5)


def test_several_batches_a_round(tiny):
    simulation, _ = run(tiny(dream_batches=3))
    assert len(simulation.dreams) == 3
    assert len({d.pixels.tobytes() for d in simulation.dreams}) == 3


@pytest.mark.parametrize("method", ["codream", "codream-fast"])
def test_parallel_batches_take_the_sums_of_one(tiny, method):
    options = {"method": method, "dream_batches": 3, "dream_steps": 2, **SMALL}
    one_by_one, _ = run(tiny(**options))
    together, history = run(tiny(**options, parallel_batches=True))
    assert one_by_one.aggregator.steps == 3 * 3
    assert together.aggregator.steps == 3
    assert together.aggregator.round_trips < one_by_one.aggregator.round_trips
    assert len(together.dreams) == len(together.groups[0].buffer.state()) == 3
    assert len({d.pixels.tobytes() for d in together.dreams}) == 3
    assert history[-1].server is not None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "codream-fast", "dream_batches": 1},
        {"dream_batches": 2, "collaboration": False},
    ],
    ids=str,
)
def test_there_must_be_something_beside_a_batch(tiny, options):
    with pytest.raises(UserError, match="--parallel-batches needs collaboration and more than one"):
        Simulation(tiny(parallel_batches=True, **options))


def test_the_saved_models_are_those_of_the_reported_round(tiny):
    simulation = Simulation(tiny(rounds=3, dreams=16))
    rounds = []
    for _ in simulation.rounds():
        rounds.append(Run.weights(simulation))
    kept = simulation.weights()
    expected = rounds[simulation.observer.reported().round - 1]
    for name, weights in expected.items():
        assert all((kept[name][key] == value).all() for key, value in weights.items())


METHODS = {
    "local steps": {"local_steps": 3, "dream_optimizer": "avg"},
    "fedadam": {"dream_optimizer": "fedadam"},
    "fast": {"method": "codream-fast", "dream_batches": 2},
    "parallel batches": {"dream_batches": 2, "parallel_batches": True, "statistics_momentum": 0.5},
    "fast, parallel batches": {
        "method": "codream-fast",
        "dream_batches": 2,
        "parallel_batches": True,
    },
    "fast, local steps, fomaml": {"method": "codream-fast", "meta": "fomaml", "local_steps": 2},
    "adaptive": {"adaptive": "jsd", "adaptive_start": 1},
    "adaptive fast, local steps": {
        "adaptive": "kl",
        "adaptive_start": 1,
        "method": "codream-fast",
        "local_steps": 2,
    },
    "confidence": {"label_weighting": "confidence"},
    "weights": {"weights": "examples", "partition": "dirichlet:0.5"},
    "both weights": {"weights": "examples", "label_weighting": "confidence", "labels": "logits"},
    "period": {"kd_period": 2, "rounds": 3},
}


# Run by `make test-slow`: the others have their parts.
RARE = {"fedadam", "parallel batches", "both weights", "period", "fast"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in RARE else ()) for n in METHODS]
)
def test_every_method_gives_the_same_bits_with_masks_and_without(tiny, name):
    options = {**SMALL, "width": 4, "rounds": 2, "dropout": 0.1, **METHODS[name]}
    masked, with_masks = run(tiny(**options), compare_independent=False)
    plain, without = run(tiny(secure=False, **options), compare_independent=False)
    assert len(masked.dreams) > 0
    assert dreams_of(masked) == dreams_of(plain)
    assert with_masks == without


@pytest.mark.parametrize("name", ["fast", "adaptive fast, local steps", "weights"])
def test_methods_run_against_a_lying_server(tiny, name):
    options = {**SMALL, "width": 4, "rounds": 2, "dropout": 0.1, **METHODS[name]}
    masked, _ = run(tiny(threat_model="malicious", **options), compare_independent=False)
    assert len(masked.dreams) > 0


def test_without_collaboration_nothing_is_sent_and_nobody_shares_a_dream(tiny):
    simulation, history = run(tiny(collaboration=False, **SMALL, rounds=2))
    assert simulation.ledger.per_client("up") == simulation.ledger.per_client("down") == 0
    assert simulation.aggregator.steps == 0
    assert len(simulation.groups) == 4
    assert len({d.pixels.tobytes() for d in simulation.dreams}) == 8
    assert history[-1].server is None
    assert "server" not in simulation.weights()


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "dirichlet-labels:0.5"},
        {"partition": "shards:3"},
        {"partition": "shards:3", "samples_per_client": 30},
        {"partition": "dirichlet-labels:0.5", "dp_eps": 8.0, "dp_steps": 2},
        {"samples_per_client": 30, "dp_eps": 8.0, "dp_steps": 2},
    ],
    ids=str,
)
def test_the_observer_s_label_counts_are_those_of_the_partition(tiny, options):
    simulation = Simulation(tiny(**options))
    counts = simulation.observer.label_counts
    assert counts.shape == (4, 10)
    total = options.get("samples_per_client", 0) * 4 or 1397
    assert counts.sum() == total
    assert simulation.federation.share == total // 4
    if "shards" in options.get("partition", ""):
        assert ((counts > 0).sum(axis=1) == 3).all()
    if simulation.federation.plan:
        # Public, and the same for everybody, however many examples a client has.
        assert simulation.federation.plan.sampling_rate == 1
    list(simulation.rounds())


def test_a_client_of_the_smallest_size_can_be_trained_with_batch_norm(tiny):
    for validation in (0.0, 0.1, 0.5):
        least = 4 if validation else 2
        config = tiny(models="resnet18", width=2, samples_per_client=least, validation=validation)
        list(Simulation(config).rounds())


def test_every_client_corrects_its_own_class_frequencies_and_none_does_under_dp(tiny):
    simulation = Simulation(tiny(partition="dirichlet:0.5", prior_correction=0.5, validation=0.0))
    members, counts = simulation.federation.members, simulation.observer.label_counts
    for client, member in members.items():
        own = torch.tensor(counts[client]) + 1
        expected = -0.5 * (own / own.sum()).log()
        assert torch.allclose(member.client.teacher.adjustment, expected)
    member.client.freeze_teacher()
    assert torch.allclose(member.client.teacher.adjustment, expected)
    for uncorrected in (tiny(prior_correction=0.0), tiny(dp_eps=8.0)):
        members = Simulation(uncorrected).federation.members.values()
        assert all(m.client.teacher.adjustment is None for m in members)


def test_bf16_and_channels_last_run_and_what_is_sent_stays_float32(tiny):
    fast = tiny(models="resnet8,mlp", precision="bf16", channels_last=True, rounds=2)
    simulation, _ = run(fast)
    client = simulation.federation.members[0].client
    weights = client.learner.model.state_dict().values()
    assert all(w.dtype != torch.bfloat16 for w in weights)
    assert any(w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.dim() == 4)
    _, plain = run(tiny(models="resnet8,mlp", rounds=2))
    # Of 32 test images each; rounding may move a few.
    assert simulation.observer.history[-1].clients_mean == pytest.approx(
        plain[-1].clients_mean, abs=0.25
    )


@pytest.mark.slow
def test_fast_mode_survives_a_hundred_rounds_of_very_skewed_data(tiny):
    """The paper's code gives NaN on every run whose data are not iid."""
    simulation, history = run(
        tiny(
            method="codream-fast",
            partition="dirichlet:0.1",
            adaptive="kl",
            models="resnet8,mlp",
            width=4,
            rounds=100,
            dreams=8,
            dream_batches=1,
            dream_steps=2,
            kd_epochs=2,
            secure=False,
            samples_per_client=100,
            clients=2,
        ),
        compare_independent=False,
    )
    assert len(history) == 100
    assert simulation.rolled_back == 0
    for weights in Run.weights(simulation).values():
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    meta = simulation.groups[0]._meta.state().meta.values()
    assert all(bool(torch.isfinite(value).all()) for value in meta)
    assert np.mean([m.clients_mean for m in history[-5:]]) > history[0].clients_mean


@pytest.mark.parametrize(
    ("options", "way_out"), [({"dreams": 1}, "--dreams 2"), ({"kd_batch": 1}, "--kd-batch 2")]
)
def test_a_model_that_cannot_learn_from_single_dreams_is_refused_before_training(
    tiny, tmp_path, monkeypatch, options, way_out
):
    (tmp_path / "normalizing.py").write_text(
        "from torch import nn\n"
        "def make(spec):\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, spec.classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    # Else the module that the case before imported, from a folder of its own, is found.
    monkeypatch.delitem(sys.modules, "normalizing", raising=False)
    with pytest.raises(UserError, match=way_out):
        Simulation(tiny(models="normalizing:make", **options))
    Simulation(tiny(models="mlp", **options))


def test_a_twin_trains_with_the_rate_of_its_client(tiny):
    simulation = Simulation(tiny(rounds=2, schedule="cosine", local_loss="balanced"))
    list(simulation.rounds())
    for member in simulation.federation.members.values():
        assert member.twin.rate == member.client.learner.rate == pytest.approx(0.5)
    assert simulation.server.student.rate == pytest.approx(0.5)
