"""codream-messenger: a small common model under masks, and dreams that come from it alone."""

import copy
import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from codream_secure.aggregation.model_updates import model_digest
from codream_secure.aggregation.requests import VERSION, DreamRequest, ModelRequest, encode
from codream_secure.dreaming.server_terms import targeted_gradient
from codream_secure.errors import RequestRefused, UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.models.build import build_model
from codream_secure.models.tensors import tensors_of
from codream_secure.sites.run_terms import unfit_for_machines
from codream_secure.storage.checkpoint import decode
from codream_secure.storage.checkpoint import encode as encode_state

COMMON = {
    "method": "codream-messenger",
    "messenger": "mlp",
    "messenger_sums": 2,
    "messenger_steps": 2,
    "models": "linear,mlp",
    "samples_per_client": 60,
    "dream_batches": 1,
    "local_loss": "balanced",
}


def whole(config, **how):
    simulation = Simulation(config, **how)
    return simulation, list(simulation.rounds())


def test_masks_change_nothing_but_bytes(tiny):
    options = COMMON | {"dropout": 0.15, "clients": 5, "models": "linear", "messenger": "linear"}
    masked, with_masks = whole(tiny(**options))
    clear, without = whole(tiny(**options, secure=False))
    assert with_masks == without
    assert all(torch.equal(a, b) for a, b in _pairs(masked, clear))
    assert masked.common.sums == 2
    assert masked.ledger.per_client("up") > clear.ledger.per_client("up")


def test_a_messenger_that_is_larger_than_every_own_model_is_told_of(tiny):
    with pytest.warns(UserWarning, match="--messenger mlp is larger.*: [0-9,]+ bytes each way"):
        Simulation(tiny(**COMMON | {"models": "linear"}))


def _pairs(one, other):
    first, second = one.weights(), other.weights()
    assert first.keys() == second.keys() == {*(f"client-{c}" for c in range(5)), "server"}
    return [(first[m][n], second[m][n]) for m in first for n in first[m]]


def test_the_server_adds_the_mean_change_and_everybody_has_the_same_model(tiny):
    """The copies after their steps say what the mean change is, to within the rounding."""
    simulation = Simulation(tiny(**COMMON, kd_epochs=0, messenger_bits=16, secure=False))
    members = simulation.federation.members.values()
    before = tensors_of(simulation.server_model())
    assert simulation.common.average()
    copies = [tensors_of(m.client.messenger._pair.messenger) for m in members]
    for name, value in tensors_of(simulation.server_model()).items():
        changes = torch.stack([one[name] - before[name] for one in copies])
        # What is sent down has 256 levels over its range.
        level = float(changes.mean(0).max() - changes.mean(0).min()) / 255
        assert torch.allclose(value - before[name], changes.mean(0), atol=1.5 * level + 1e-4)
        assert float(changes.abs().max()) > 0
        assert all(torch.equal(m.client.messenger._common[name], value) for m in members)
    assert {m.client.learner.local_steps for m in members} == {2}


def test_private_models_never_travel(tiny):
    """Clients with larger models send and receive as many bytes."""
    small, large = (
        whole(tiny(**COMMON | {"models": models, "kd_epochs": 0, "messenger": "linear"}))[0]
        for models in ("linear", "lenet5")
    )
    for way in ("up", "down"):
        assert small.ledger.per_client(way) == large.ledger.per_client(way)


def test_a_run_goes_on_from_a_checkpoint_to_the_same_end(tiny):
    config = tiny(**COMMON, rounds=2)
    straight, _ = whole(config)
    first = Simulation(config)
    next(iter(first.rounds()))
    data = encode_state(first.state(checkpoint_every=1))
    second = Simulation(config)
    second.restore(decode(data))
    list(second.rounds())
    assert second.common.sums == straight.common.sums
    for name, weights in straight.weights().items():
        for key, value in weights.items():
            assert torch.equal(second.weights()[name][key], value), (name, key)


def test_a_checkpoint_of_another_method_is_refused(tiny):
    state = Simulation(tiny(models="linear", samples_per_client=60)).state(checkpoint_every=1)
    other = Simulation(tiny(**COMMON | {"models": "linear", "messenger": "linear"}))
    with pytest.raises((ValueError, KeyError, RuntimeError)):
        other.restore(state)


@pytest.fixture
def asked(tiny):
    """Return a client of a run, and a request that it would answer."""
    simulation = Simulation(tiny(**COMMON))
    return simulation.federation.members[0].client, simulation.common._request(
        tensors_of(simulation.server_model())
    )


def _of(request, **changes):
    return encode(msgspec.structs.replace(request, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bits": 16}, "not the run's"),
        ({"weight_cap": 5}, "not the run's"),
        ({"round": 0}, "sum 0"),
        ({"round": 3}, "of 2"),
        ({"model": b"\0" * 32}, "another model"),
        ({"sizes": (1,), "scales": (1.0,)}, "another architecture"),
        ({"scales": (1e-30,) * 4}, "out of range"),
        ({"scales": (float("nan"),) * 4}, "positive and finite"),
    ],
)
def test_a_client_refuses_what_the_run_does_not_lead_to(asked, changes, told):
    client, request = asked
    request = msgspec.structs.replace(request, round=1)
    with pytest.raises(RequestRefused, match=told):
        client.admit(_of(request, **changes))
    assert client.learner.local_steps == 0


def test_a_client_answers_each_sum_once_and_trains_no_model_but_the_one_that_was_sent(asked):
    client, request = asked
    client.answer(_of(request, round=1), 0)
    assert client.learner.local_steps == 2
    for again in ({"round": 1}, {"round": 1, "scales": (0.5,) * 4}):
        with pytest.raises(RequestRefused):
            client.answer(_of(request, **again), 1)
    assert client.learner.local_steps == 2


def test_no_gradient_is_answered_in_such_a_run_and_no_update_in_another(tiny, asked):
    client, request = asked
    dreams = DreamRequest(VERSION, 1, 0, 0, (1, 1, 8, 8), b"\0" * 64, 4, 1.0, 1.0, 0.0, 1.0)
    with pytest.raises(RequestRefused, match="no gradients"):
        client.admit(encode(dreams))
    other = Simulation(tiny(models="linear", samples_per_client=60)).federation.members[0].client
    with pytest.raises(RequestRefused, match="no common model"):
        other.admit(_of(request, round=1))


def test_a_message_that_is_no_change_of_the_model_is_refused(asked):
    client, _ = asked
    state = {n: v + 0 for n, v in client.messenger._common.items()}
    for message in (b"nonsense", encode(ModelRequest(VERSION, 1, b"", (), (), 8))):
        with pytest.raises(RequestRefused):
            client.messenger.receive(message)
    assert model_digest(client.messenger._common) == model_digest(state)


def test_dreams_are_made_by_the_server_alone_each_towards_a_class(tiny):
    simulation, _ = whole(tiny(**COMMON | {"dreams": 20, "dream_steps": 30}))
    names = {type(m).__name__ for m in simulation.federation.members.values()}
    assert names == {"Member"}
    dreams = simulation.federation.scale.from_pixels(simulation.dreams[-1].pixels)
    said = simulation.server_model().eval()(dreams).argmax(1)
    assert (said == torch.arange(20) % 10).float().mean() > 0.9
    assert simulation.aggregator.steps == 3  # two averages and one sum of labels


def test_the_gradient_towards_classes_is_that_of_cross_entropy_and_r_bn(data):
    model = build_model("resnet8", data.spec, width=4, norm="batch", seed=1).eval()
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    leaf = x.clone().requires_grad_()
    inputs = []
    layers = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    hooks = [m.register_forward_pre_hook(lambda _, a: inputs.append(a[0])) for m in layers]
    loss = F.cross_entropy(model(leaf), torch.tensor([*range(10), 0, 1]))
    for hook in hooks:
        hook.remove()
    apart = [
        (layer.running_mean - a.mean((0, 2, 3))).norm()
        + (layer.running_var - a.var((0, 2, 3), unbiased=False)).norm()
        for layer, a in zip(layers, inputs, strict=True)
    ]
    loss = loss + 0.7 * sum(apart) / len(apart)
    (wanted,) = torch.autograd.grad(12 * loss, leaf)
    assert torch.allclose(targeted_gradient(model, x, 0.7), wanted, rtol=1e-3, atol=1e-4)


def test_the_schedule_falls_from_sum_to_sum(tiny):
    simulation = Simulation(tiny(**COMMON, rounds=2, schedule="cosine", secure=False))
    learner, rates = simulation.federation.members[0].client.learner, []
    original = learner.set_rate
    learner.set_rate = lambda share: (rates.append(share), original(share))
    list(simulation.rounds())
    # Three parts of equal length in each of two rounds; twins follow.
    assert np.allclose(rates, [(1 + np.cos(np.pi * k / 6)) / 2 for k in range(6)])
    twins = [m.twin.local_steps for m in simulation.federation.members.values()]
    assert twins == [m.client.learner.local_steps for m in simulation.federation.members.values()]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"collaboration": False}, "--no-collaboration"),
        ({"weights": "examples"}, "--weights"),
        ({"bits": 2}, "--bits"),
        ({"adaptive": "jsd"}, "--adaptive"),
        ({"messenger": "nonsense"}, "nonsense"),
        ({"method": "codream"}, "--messenger"),
    ],
)
def test_what_does_not_go_together_is_one_line(tiny, options, told):
    given = {n: v for n, v in COMMON.items() if "dp_eps" not in options or n != "local_loss"}
    with pytest.raises(UserError, match=told):
        Simulation(tiny(**given | options))


def test_it_can_only_be_simulated(tiny):
    config = dataclasses.replace(copy.deepcopy(tiny(**COMMON)))
    assert "codream-messenger" in unfit_for_machines(config)
