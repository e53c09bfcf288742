"""CoDream-fast without generator traffic: the chain rule on sums is the gradient itself."""

import copy

import pytest
import torch

from codream_secure.aggregation.requests import VERSION, DreamRequest
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dreaming.feature_statistics import StatisticsMemory
from codream_secure.dreaming.generator import GeneratorSettings, MetaGenerator
from codream_secure.dreaming.teacher import Teacher, client_loss, dream_gradient
from codream_secure.models.build import build_model
from codream_secure.models.generator import Generator
from protocols.quantization import Quantizer

SPEC = InputSpec(1, 8, 8, 10)
SCALE = PixelScale(Scaling((0.5,), (0.5,)))


def settings(**changes):
    values = {
        "latent": 12,
        "width": 4,
        "lr": 5e-3,
        "latent_lr": 1.5e-2,
        "meta": "reptile",
        "meta_lr": 1e-2,
        "weight_decay": 0.0,
        "average": 0.0,
        "max_norm": 1e9,
        "reset_round": 0,
    }
    return GeneratorSettings(**(values | changes))


def meta(**changes):
    return MetaGenerator(SPEC, SCALE, settings(**changes), seed=3)


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def asked(count):
    return DreamRequest(
        version=VERSION,
        round=1,
        batch=0,
        dream_step=0,
        shape=(count, 1, 8, 8),
        dreams=bytes(count * 64),
        bits=8,
        clip=1.0,
        entropy_weight=1.0,
        bn_weight=10.0,
        balance_weight=1.0,
    )


def teachers(count=3):
    made = []
    for seed in range(count):
        model = build_model("resnet8", SPEC, norm="batch", seed=seed)
        model(torch.randn(16, 1, 8, 8))
        model = model.double().eval().requires_grad_(False)
        made.append(Teacher(model, StatisticsMemory()))
    return made


@pytest.mark.parametrize(
    ("spec", "parameters"), [((3, 32, 32), 2_328_899), ((1, 28, 28), 1_834_305)]
)
def test_the_generator_is_the_papers(spec, parameters):
    generator = Generator(InputSpec(*spec, 10), latent=256, width=64, seed=0)
    assert sum(p.numel() for p in generator.parameters()) == parameters
    assert generator(torch.randn(2, 256)).shape == (2, *spec)


@pytest.mark.parametrize("side", [8, 27, 64])
def test_generated_images_have_the_asked_size_and_range(side):
    images = Generator(InputSpec(3, side, side, 10), latent=5, width=2, seed=0)(torch.randn(3, 5))
    assert images.shape == (3, 3, side, side)
    assert 0 <= images.min() < images.max() <= 1


def gradients_of(batch):
    return [p.grad.clone() for p in (*batch.generator.parameters(), batch._latents)]


def test_the_chain_rule_on_the_summed_gradient_is_the_gradient_of_the_summed_losses():
    """D25: exact for one local step, before quantization."""
    batch = meta().batch(6, noise(), fits=1)
    batch.generator.double()
    batch._latents = batch._latents.detach().double().requires_grad_()
    images = batch._images()
    request, clients = asked(6), teachers()
    summed = sum(dream_gradient(t, images.detach(), request)[0] for t in clients)
    direct = sum(client_loss(t, images, request) for t in clients)
    parameters = [*batch.generator.parameters(), batch._latents]
    expected = torch.autograd.grad(direct, parameters)
    batch._optimizer = torch.optim.SGD(parameters, lr=0.0)
    batch._step(batch._images(), summed)
    for found, wanted in zip(gradients_of(batch), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-12)
    assert max(float(g.abs().max()) for g in expected) > 1e-3


def test_after_quantization_the_chain_rule_is_off_by_no_more_than_the_quantizers_bound():
    """|J^T (quantized - exact)| <= |J|^T bound, coordinate by coordinate, for the latents."""
    batch = meta().batch(4, noise(), fits=1)
    request, clients, quantizer = asked(4), teachers(), Quantizer(63, 0.5)
    images = batch._images()
    exact = [
        dream_gradient(t, images.detach().double(), request)[0].clamp(-0.5, 0.5) for t in clients
    ]
    codes = sum(
        quantizer.encode(g.numpy(), seed=bytes([k] * 32), step=0, section="gradient").astype(int)
        for k, g in enumerate(exact)
    )
    decoded = torch.from_numpy(quantizer.decode_sum(codes, len(exact))).reshape(images.shape)
    error = (decoded - sum(exact)).float()
    bound = len(exact) * quantizer.resolution
    assert error.abs().max() < bound
    (moved,) = torch.autograd.grad(images, batch._latents, error, retain_graph=True)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: SCALE.scale(batch.generator(z)), batch._latents.detach()
    )
    limit = jacobian.abs().sum(dim=(0, 1, 2, 3)) * bound
    assert (moved.abs() <= limit).all()
    assert moved.abs().max() > 0


def test_a_batch_moves_towards_what_the_gradient_says():
    batch = meta().batch(8, noise(), fits=1)
    target = torch.full((8, 1, 8, 8), 0.5)
    before = (batch.dreams() - target).square().mean()
    for _ in range(60):
        assert batch.descend(batch.dreams() - target, stride=1.0)
    assert (batch.dreams() - target).square().mean() < before / 5


def test_a_pseudo_gradient_is_fitted_in_as_many_steps():
    gradient = torch.full((8, 1, 8, 8), 2.0)
    distances = {}
    for fits in (1, 6):
        batch = meta().batch(8, noise(), fits=fits)
        target = (batch.dreams() - 0.1 * gradient).clamp(-1, 1)
        batch.descend(gradient, stride=0.1)
        distances[fits] = (batch.dreams() - target).square().mean()
    assert distances[6] < distances[1] / 2


def test_what_is_not_finite_is_taken_back():
    batch = meta().batch(4, noise(), fits=1)
    before = {k: v.clone() for k, v in batch.generator.state_dict().items()}
    dreams = batch.dreams().clone()
    assert not batch.descend(torch.full((4, 1, 8, 8), float("nan")), stride=1.0)
    assert (batch.dreams() == dreams).all()
    assert all((before[k] == v).all() for k, v in batch.generator.state_dict().items())
    assert batch.descend(torch.ones(4, 1, 8, 8), stride=1.0)
    spoilt = meta().batch(4, noise(), fits=1)
    with torch.no_grad():
        next(spoilt.generator.parameters()).fill_(float("inf"))
    one = meta()
    start = copy.deepcopy(one._meta.state_dict())
    assert not one.learn_from(spoilt)
    assert all((start[k] == v).all() for k, v in one._meta.state_dict().items())


@pytest.mark.parametrize("rule", ["reptile", "fomaml"])
def test_the_meta_generator_comes_to_start_where_batches_end(rule):
    one = meta(meta=rule)
    target = torch.full((16, 1, 8, 8), 0.6)

    def distance(number):
        return (one.batch(16, noise(number), fits=1).dreams() - target).square().mean()

    before = distance(100)
    for number in range(25):
        batch = one.batch(16, noise(number), fits=1)
        for _ in range(5):
            batch.descend(batch.dreams() - target, stride=1.0)
        assert one.learn_from(batch)
    assert distance(100) < before / 3


def test_reptile_follows_the_difference_and_fomaml_the_summed_gradients():
    batch = meta().batch(4, noise(), fits=1)
    totals = [torch.zeros_like(p) for p in batch.generator.parameters()]
    for _ in range(3):
        batch.descend(batch.dreams(), stride=1.0)
        for total, parameter in zip(totals, batch.generator.parameters(), strict=True):
            total.add_(parameter.grad)
    for rule in ("reptile", "fomaml"):
        one = meta(meta=rule)
        start = [p.detach().clone() for p in one._meta.parameters()]
        one.learn_from(batch)
        own = batch.generator.parameters()
        ways = totals if rule == "fomaml" else [s - p for s, p in zip(start, own, strict=True)]
        for parameter, way in zip(one._meta.parameters(), ways, strict=True):
            assert torch.allclose(parameter.grad, way, atol=1e-7)


def test_the_first_layer_is_drawn_anew_once():
    one = meta(reset_round=3)
    for number in (1, 2):
        before = copy.deepcopy(one._meta.state_dict())
        one.begin_round(number)
        assert all((before[k] == v).all() for k, v in one._meta.state_dict().items())
    one.begin_round(3)
    after = one._meta.state_dict()
    assert (before["first.weight"] != after["first.weight"]).any()
    assert all((before[k] == v).all() for k, v in after.items() if not k.startswith("first"))


def test_batches_may_start_from_a_running_average():
    one = meta(average=0.9)
    start = copy.deepcopy(one._meta.state_dict())
    batch = one.batch(4, noise(), fits=1)
    for _ in range(4):
        batch.descend(batch.dreams(), stride=1.0)
    one.learn_from(batch)
    for name, value in one.batch(4, noise(), fits=1).generator.state_dict().items():
        expected = 0.9 * start[name] + 0.1 * one._meta.state_dict()[name]
        assert torch.allclose(value, expected, atol=1e-6)


def test_latents_come_from_the_seed_alone():
    first, again = (meta().batch(4, noise(5), fits=1).dreams() for _ in range(2))
    assert (first == again).all()
    assert (first != meta().batch(4, noise(6), fits=1).dreams()).any()
