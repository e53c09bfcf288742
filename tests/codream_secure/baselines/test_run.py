import copy
import itertools

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from codream_secure.aggregation.decoding import decode_model_request
from codream_secure.aggregation.requests import VERSION, ModelRequest, ModelState, encode
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.baselines.avgkd import targets
from codream_secure.baselines.base import BaselineSettings, Representation
from codream_secure.baselines.clear import ModelUpdate
from codream_secure.baselines.exchange import ModelExchange
from codream_secure.baselines.run import BaselineRun
from codream_secure.config.methods import parse_method
from codream_secure.errors import RequestRefused, UserError
from codream_secure.learning.batches import BatchStream
from codream_secure.models.tensors import tensors_of
from codream_secure.privacy import noisy_descent
from codream_secure.privacy.dpsgd import PrivateTrainer
from codream_secure.privacy.integer_gradients import gradient_sum

EVERY = [
    "fedavg",
    "fedavg-secure",
    "fedavg-8bit",
    "fedavg-secure-8bit",
    "fedprox-secure",
    "scaffold",
    "scaffold-secure",
    "moon",
    "moon-secure",
    "fedgen",
    "avgkd",
    "independent",
    "centralized",
]


def build(tiny, name, settings=None, **options):
    return BaselineRun(tiny(**options), parse_method(name), settings or BaselineSettings())


def after(run, rounds):
    list(itertools.islice(run.rounds(), rounds))
    return run


def parameters(run):
    return torch.cat([p.flatten() for p in tensors_of(run.baseline.model).values()])


@pytest.mark.parametrize("name", EVERY)
def test_every_method_learns_digits(tiny, name):
    run = after(build(tiny, name, models="mlp", partition="dirichlet:1"), 3)
    last = run.observer.history[-1]
    assert np.mean(last.clients) > 0.5
    assert (last.server is None) == (name in {"avgkd", "independent"})
    assert run.iterations > 0


@pytest.mark.parametrize("family", ["fedavg", "scaffold", "moon"])
def test_masks_change_nothing_but_bytes(tiny, family):
    small = {"models": "resnet8", "width": 4, "samples_per_client": 60}
    runs = [
        after(build(tiny, f"{family}{s}-8bit", **small, dropout=0.1), 2) for s in ("", "-secure")
    ]
    assert torch.equal(*map(parameters, runs))
    assert runs[1].ledger.per_client("up") > runs[0].ledger.per_client("up")


def test_a_round_of_fedavg_is_the_mean_of_its_clients(tiny):
    run = build(tiny, "fedavg", models="mlp")
    after(run, 1)
    trained = [tensors_of(model) for model in run.baseline.locals.values()]
    for name, value in tensors_of(run.baseline.model).items():
        mean = torch.stack([t[name] for t in trained]).mean(dim=0)
        assert torch.allclose(value, mean, atol=1e-6)


def test_with_weights_clients_count_by_their_examples(tiny):
    options = {"models": "mlp", "weights": "examples", "partition": "dirichlet-labels:1"}
    clear = after(build(tiny, "fedavg", **options), 1)
    sizes = [len(clear.federation.examples(c).y) for c in range(4)]
    assert len(set(sizes)) > 1
    trained = [tensors_of(model) for model in clear.baseline.locals.values()]
    for name, value in tensors_of(clear.baseline.model).items():
        parts = [t[name] * (n / sum(sizes)) for t, n in zip(trained, sizes, strict=True)]
        assert torch.allclose(value, torch.stack(parts).sum(dim=0), atol=1e-6)
    masked = after(build(tiny, "fedavg-secure", **options), 1)
    assert float((parameters(masked) - parameters(clear)).abs().mean()) < 1e-3


def test_sixteen_masked_bits_are_close_to_floats(tiny):
    clear, masked = (
        after(build(tiny, name, models="mlp"), 2) for name in ("fedavg", "fedavg-secure")
    )
    # A few numbers whose update is far above the others' are clipped.
    error = (parameters(masked) - parameters(clear)).abs()
    assert float(error.mean()) < 1e-3


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "moon-secure"])
def test_a_run_follows_from_its_seed(tiny, name):
    first, second, other = (
        after(build(tiny, name, models="mlp", seed=seed), 2) for seed in (3, 3, 4)
    )
    assert torch.equal(parameters(first), parameters(second))
    assert not torch.equal(parameters(first), parameters(other))


def test_without_pull_or_control_the_variants_are_fedavg(tiny):
    plain = BaselineSettings(prox=0.0, moon_weight=0.0, momentum=0.0)
    runs = {
        name: after(build(tiny, name, plain, models="mlp"), 2)
        for name in ("fedavg", "fedprox", "moon")
    }
    for name in ("fedprox", "moon"):
        assert torch.allclose(parameters(runs[name]), parameters(runs["fedavg"]), atol=1e-6)
    # SCAFFOLD's control variates are zero in the first round.
    first = [after(build(tiny, n, plain, models="mlp"), 1) for n in ("fedavg", "scaffold")]
    assert torch.allclose(*map(parameters, first), atol=1e-6)


def test_fedprox_holds_copies_near_the_global_model(tiny):
    def moved(prox):
        run = build(tiny, "fedprox", BaselineSettings(prox=prox), models="mlp")
        start = parameters(run)
        return float((parameters(after(run, 1)) - start).norm())

    assert moved(10.0) < 0.5 * moved(0.0)


def test_the_controls_of_scaffold_are_the_mean_of_the_clients(tiny):
    run = after(build(tiny, "scaffold", models="mlp"), 3)
    baseline = run.baseline
    for name, value in baseline._control.items():
        mean = torch.stack([own[name] for own in baseline._own.values()]).mean(dim=0)
        assert torch.allclose(value, mean, atol=1e-4)


def test_avgkd_learns_from_its_label_and_the_mean_of_the_others():
    x, y = torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])

    class Sure(nn.Module):
        def forward(self, images):
            return torch.tensor([[-50.0, -50.0, 50.0]]).expand(len(images), 3)

    assert torch.equal(targets([], x, y), y)
    mixed = targets([Sure(), Sure()], x, y)
    assert torch.allclose(mixed, torch.tensor([[1 / 3, 0, 2 / 3], [0, 1 / 3, 2 / 3]]), atol=1e-6)


def test_avgkd_takes_models_of_any_architecture_and_sends_no_image(tiny):
    run = after(build(tiny, "avgkd", models="mlp,linear"), 2)
    sizes = [
        sum(v.numel() for v in tensors_of(m).values())
        for m in run.baseline.client_models().values()
    ]
    everybody = sum(sizes)
    by = run.ledger.by_client()
    for client, own in enumerate(sizes):
        assert 0 <= by[client]["up"] - 2 * 4 * own < 200
        assert 0 <= by[client]["down"] - 2 * 4 * (everybody - own) < 400


def test_one_model_for_all_needs_one_architecture(tiny):
    with pytest.raises(UserError, match="needs one architecture"):
        build(tiny, "fedavg", models="mlp,linear")
    with pytest.raises(UserError, match="not available with --dp-eps"):
        build(tiny, "fedprox", dp_eps=8.0)


@pytest.mark.parametrize("name", ["fedavg", "fedavg-secure", "independent"])
def test_under_dp_data_is_touched_by_the_charged_steps_alone(tiny, name, monkeypatch):
    taken = []
    real = PrivateTrainer.step
    monkeypatch.setattr(PrivateTrainer, "step", lambda *a: (taken.append(a[0]), real(*a)))
    monkeypatch.setattr(BatchStream, "next", None)
    run = build(tiny, name, models="mlp", dp_eps=8.0, dp_steps=5, rounds=3)
    before = [tensors_of(m) for m in run.baseline.client_models().values()]
    after(run, 5)
    assert len(taken) == 5 * 4
    assert {taken.count(trainer) for trainer in taken} == {5}
    guarantee = run.guarantee()
    assert guarantee.steps == 5
    assert 7.9 < guarantee.epsilon <= 8
    assert [r.name for r in guarantee.releases] == ["local training"]
    models = run.baseline.client_models().values()
    for old, model in zip(before, models, strict=True):
        assert any((old[n] != v).any() for n, v in tensors_of(model).items())


def test_distributed_dpsgd_releases_noisy_sums_alone(tiny, monkeypatch):
    monkeypatch.setattr(BatchStream, "next", None)
    monkeypatch.setattr(PrivateTrainer, "step", None)
    options = {"models": "mlp", "dp_eps": 8.0, "dp_steps": 5, "rounds": 3, "clients": 6}
    run = build(tiny, "dpsgd-secure", **options)
    before = tensors_of(run.baseline.descent.model)
    after(run, 5)
    found = run.guarantee()
    assert {(r.name, r.unit) for r in found.releases} == {("summed gradients", "example")}
    assert sum(r.steps for r in found.releases) == 5
    # All six stayed, so that only the last sum has more noise than the budget needs.
    assert 7.6 < found.epsilon <= 8
    assert run.epsilon() == found.epsilon
    assert found.noise_colluders == 1
    assert run.exchange.aggregator.steps == 5
    assert any((before[n] != v).any() for n, v in tensors_of(run.baseline.descent.model).items())
    assert {type(a).__name__ for a in [run.exchange.aggregator]} == {"SecureAggregator"}


def test_distributed_dpsgd_charges_what_is_aborted(tiny):
    options = {"models": "mlp", "dp_eps": 8.0, "dp_steps": 4, "rounds": 2, "dropout": 1.0}
    run = build(tiny, "dpsgd-secure", **options)
    before = tensors_of(run.baseline.descent.model)
    after(run, 2)
    assert run.exchange.aborted == 4
    assert 7.8 < run.guarantee().epsilon <= 8
    assert all((before[n] == v).all() for n, v in tensors_of(run.baseline.descent.model).items())


def test_distributed_dpsgd_is_near_the_gradient_without_noise(tiny):
    """At a large budget its first step is nearly that of the clipped mean gradient."""
    options = {"models": "mlp", "dp_eps": 50.0, "dp_steps": 1, "rounds": 1, "dp_lr": 1.0}
    run = build(tiny, "dpsgd-secure", **options)
    start, everybody = copy.deepcopy(run.baseline.descent.model), run.federation
    grid = run.baseline._grid
    parts = [everybody.examples(c) for c in everybody.roster]
    expected = sum(gradient_sum(start, p.x, p.y, grid) for p in parts) / grid.scale
    after(run, 1)
    pairs = zip(start.parameters(), run.baseline.descent.model.parameters(), strict=True)
    moved = torch.cat([(a - b).detach().flatten() for a, b in pairs]).numpy()
    count = everybody.share * len(everybody.roster)
    cosine = moved @ expected / np.linalg.norm(moved) / np.linalg.norm(expected)
    assert cosine > 0.99
    step = (1 - noisy_descent._MOMENTUM) * np.linalg.norm(expected) / count
    assert np.linalg.norm(moved) == pytest.approx(step, rel=0.1)


def test_distributed_dpsgd_ends_with_the_mean_of_its_last_models(tiny, monkeypatch):
    options = {"models": "mlp", "dp_eps": 8.0, "dp_steps": 8, "rounds": 4, "clients": 4}
    run = build(tiny, "dpsgd-secure", **options)
    seen, deliver = [], ModelExchange.deliver
    monkeypatch.setattr(
        ModelExchange, "deliver", lambda *args: seen.append(deliver(*args)) or seen[-1]
    )
    for number, _ in enumerate(itertools.islice(run.rounds(), 5), start=1):
        found = run.baseline.server_model()
        assert set(run.baseline.client_models().values()) == {found}
        if number < 4:
            assert found is run.baseline.descent.model
            continue
        assert len(seen) == 8  # and a round without a step changes nothing
        for name, value in tensors_of(found).items():
            assert torch.allclose(value, (seen[6][name] + seen[7][name]) / 2, atol=1e-6)


def test_distributed_dpsgd_without_a_budget_is_refused(tiny):
    with pytest.raises(UserError, match="needs --dp-eps"):
        build(tiny, "dpsgd-secure")


def test_of_several_architectures_centralized_trains_the_first(tiny):
    run = after(build(tiny, "centralized", models="linear,mlp"), 1)
    assert not any(isinstance(layer, torch.nn.ReLU) for layer in run.baseline.model.modules())
    assert run.observer.history[0].server is not None


def test_bytes_are_those_of_the_encoded_messages(tiny):
    run = after(build(tiny, "fedavg", models="linear"), 2)
    tensors = tuple(v.numpy().tobytes() for v in tensors_of(run.baseline.model).values())
    up = len(msgspec.msgpack.encode(ModelUpdate(VERSION, 1, tensors, 1)))
    down = len(encode(ModelState(VERSION, 1, 32, tensors)))
    request = len(encode(ModelRequest(VERSION, 1, bytes(32), (), (), 32)))
    assert run.ledger.per_client("up") == 2 * up
    assert run.ledger.per_client("down") == 2 * (down + request)


def test_eight_bits_down_are_a_quarter_and_keep_the_mean(tiny):
    full, small = (after(build(tiny, n, models="mlp"), 1) for n in ("fedavg", "fedavg-8bit"))
    assert small.ledger.per_client("down") < 0.3 * full.ledger.per_client("down")
    error = parameters(small) - parameters(full)
    assert abs(float(error.mean())) < 1e-3


def test_an_aborted_round_leaves_the_model_as_it_was(tiny):
    run = build(tiny, "fedavg-secure", models="mlp", dropout=0.99)
    before = parameters(run)
    after(run, 1)
    assert run.exchange.aborted == 1
    assert torch.equal(parameters(run), before)


def test_masked_averaging_works_against_a_server_that_may_lie(tiny):
    run = after(build(tiny, "fedavg-secure", models="linear", threat_model="malicious"), 2)
    assert run.exchange.aborted == 0
    assert run.ledger.by_phase()["consistency"]["up"] > 0


def test_a_representation_is_what_goes_into_the_classifier():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    caught = Representation(model)
    x = torch.randn(4, 3)
    model(x)
    assert torch.equal(caught.value, model[1](model[0](x)))
    caught.close()


REQUEST = ModelRequest(VERSION, 1, bytes(32), (2, 3), (0.1, 0.2), 8)


@pytest.mark.parametrize(
    "request_",
    [
        msgspec.structs.replace(REQUEST, version=VERSION + 1),
        msgspec.structs.replace(REQUEST, sizes=(5,)),
        msgspec.structs.replace(REQUEST, sizes=(2, 0)),
        msgspec.structs.replace(REQUEST, scales=(0.1, float("nan"))),
        msgspec.structs.replace(REQUEST, scales=(0.1, -1.0)),
        msgspec.structs.replace(REQUEST, bits=40),
        msgspec.structs.replace(REQUEST, weight_cap=1 << 40),
    ],
)
def test_a_request_for_a_model_that_makes_no_sense_is_refused(request_):
    decode_model_request(encode(REQUEST))
    with pytest.raises(RequestRefused):
        decode_model_request(encode(request_))
    with pytest.raises(RequestRefused):
        decode_model_request(encode(REQUEST)[:-1])


def test_two_sums_of_weights_tell_a_client_s_number_of_examples(tiny, monkeypatch):
    """What SECURITY says of `fedavg-secure` by examples: no noise hides the sum of weights."""
    told, original = [], SecureAggregator.sum

    def total(self, request):
        found = original(self, request)
        told.append(int(found.totals["weight"][0]))
        return found

    monkeypatch.setattr(SecureAggregator, "sum", total)
    run = build(tiny, "fedavg-secure", weights="examples", partition="dirichlet-labels:1")
    run.round(1)

    def away(_broadcast, _step):
        raise RequestRefused("away")

    monkeypatch.setitem(run.aggregator._clients, 0, away)
    run.round(2)
    assert told[0] - told[1] == run.exchange.weights[0]
