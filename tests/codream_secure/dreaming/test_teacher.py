"""What a client computes: R_bn against its definition, and the gradient it sends."""

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from codream_secure.aggregation.requests import VERSION, DreamRequest, LocalSteps, Student, pixels
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dreaming.feature_statistics import FeatureStatistics, StatisticsMemory
from codream_secure.dreaming.losses import adversarial
from codream_secure.dreaming.teacher import (
    Teacher,
    client_loss,
    dream_contribution,
    dream_gradient,
    logit_adjustment,
)
from codream_secure.models.build import build_model

SPEC = InputSpec(1, 8, 8, 10)
SCALE = PixelScale(Scaling((0.5,), (0.5,)))


def request(count=4, **changes):
    values = {
        "version": VERSION,
        "round": 1,
        "batch": 0,
        "dream_step": 0,
        "shape": (count, 1, 8, 8),
        "dreams": bytes(i * 7 % 256 for i in range(count * 64)),
        "bits": 8,
        "clip": 1.0,
        "entropy_weight": 1.0,
        "bn_weight": 10.0,
        "balance_weight": 1.0,
    }
    return DreamRequest(**(values | changes))


ALL = request()


def frozen(name, norm="batch", seed=0):
    model = build_model(name, SPEC, norm=norm, seed=seed)
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8))
    return Teacher(model.eval().requires_grad_(False), StatisticsMemory())


def test_penalty_is_the_mean_over_layers_of_both_norms():
    layer = nn.BatchNorm2d(2)
    layer.running_mean = torch.tensor([1.0, 0.0])
    layer.running_var = torch.tensor([2.0, 3.0])
    teacher = nn.Sequential(layer, nn.Identity()).eval()
    images = torch.randn(5, 2, 4, 4)
    with FeatureStatistics(teacher) as statistics:
        out = teacher(images)
    mean, var = images.mean((0, 2, 3)), images.var((0, 2, 3), unbiased=False)
    expected = (layer.running_mean - mean).norm() + (layer.running_var - var).norm()
    penalty = statistics.penalty(out, StatisticsMemory(), 0.0)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_and_their_gradient_are_those_of_mean_and_variance(kind, layout):
    images = (2 * torch.randn(6, 3, 5, 5) + 1).to(kind).to(memory_format=layout)
    images[:, 1] = 0.25  # a dead channel
    layer, watched = nn.BatchNorm2d(3).eval(), images.clone().requires_grad_()
    with FeatureStatistics(layer) as statistics:
        layer(watched)
    exact = images.double().requires_grad_()
    expected = exact.mean((0, 2, 3)), exact.var((0, 2, 3), unbiased=False)
    weights = torch.tensor([1.0, -2.0, 3.0])
    for moments in (statistics.moments[0], expected):
        sum((weights * part).sum() for part in moments).backward()
    for found, wanted in zip(statistics.moments[0], expected, strict=True):
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-6)
    close = {"rel": 2**-7, "abs": 1e-3} if kind is torch.bfloat16 else {"rel": 1e-4, "abs": 1e-6}
    flat = watched.grad.double().flatten().tolist()
    assert flat == pytest.approx(exact.grad.flatten().tolist(), **close)


def test_the_prior_correction_makes_even_frequencies_of_skewed_ones():
    """Where the posterior is Bayes' on a client's frequencies, it becomes that of even ones."""
    labels = torch.tensor([0] * 79 + [1] * 19)
    likelihood = torch.tensor([[0.2, 0.5, 0.3]])
    posterior = likelihood * torch.tensor([80, 20, 1]) / 101
    logits = (posterior / posterior.sum()).log()
    corrected = (logits + logit_adjustment(labels, 3, 1.0)).softmax(dim=1)
    assert corrected.numpy() == pytest.approx(likelihood.numpy(), abs=1e-6)
    half = logit_adjustment(labels, 3, 0.5)
    assert (2 * half).numpy() == pytest.approx(logit_adjustment(labels, 3, 1.0).numpy())


def test_a_teacher_speaks_with_its_offset():
    plain = frozen("mlp")
    images = torch.randn(3, 1, 8, 8)
    offset = torch.arange(10.0)
    shifted = dataclasses.replace(plain, adjustment=offset)
    assert torch.equal(shifted(images), plain(images) + offset)
    assert client_loss(shifted, images, ALL) != client_loss(plain, images, ALL)


def test_a_teacher_without_batch_norm_has_no_penalty():
    teacher = frozen("mlp")
    with FeatureStatistics(teacher.model) as statistics:
        out = teacher(torch.zeros(2, 1, 8, 8))
    assert statistics.penalty(out, StatisticsMemory(), 0.5).item() == 0


@pytest.mark.parametrize("name", ["resnet8", "mlp"])
def test_gradient_matches_finite_differences(name):
    teacher = frozen(name)
    teacher.model.double()
    dreams = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    gradient, _ = dream_gradient(teacher, dreams, ALL)
    direction = torch.randn_like(dreams)
    step = 1e-6
    ahead = client_loss(teacher, dreams + step * direction, ALL)
    behind = client_loss(teacher, dreams - step * direction, ALL)
    slope = (ahead - behind) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_the_gradient_leaves_the_teacher_untouched():
    teacher = frozen("resnet8")
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    dream_gradient(teacher, torch.rand(4, 1, 8, 8), ALL)
    assert all((before[name] == value).all() for name, value in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


@pytest.mark.parametrize("off", ["entropy_weight", "bn_weight", "balance_weight"])
def test_each_term_can_be_switched_off(off):
    teacher, dreams = frozen("resnet8"), torch.rand(4, 1, 8, 8)
    values = {"entropy_weight": 1.0, "bn_weight": 1.0, "balance_weight": 1.0}
    full = client_loss(teacher, dreams, request(**values))
    alone = client_loss(teacher, dreams, request(**{name: float(name == off) for name in values}))
    rest = client_loss(teacher, dreams, request(**(values | {off: 0.0})))
    assert alone.item() != 0
    assert (alone + rest).item() == pytest.approx(full.item(), rel=1e-5)


def test_running_statistics_mix_earlier_dreams_in_and_forget_them_slowly():
    layer = nn.BatchNorm2d(2)
    teacher = nn.Sequential(layer, nn.Identity()).eval()
    memory, batches = StatisticsMemory(), [torch.randn(5, 2, 4, 4) + k for k in range(3)]
    expected = None
    for images in batches:
        with FeatureStatistics(teacher) as statistics:
            out = teacher(images)
        mean, var = images.mean((0, 2, 3)), images.var((0, 2, 3), unbiased=False)
        mixed = (
            (mean, var)
            if expected is None
            else tuple(
                0.9 * old + 0.1 * new for old, new in zip(expected, (mean, var), strict=True)
            )
        )
        distance = (layer.running_mean - mixed[0]).norm() + (layer.running_var - mixed[1]).norm()
        penalty = statistics.penalty(out, memory, 0.9)
        assert penalty.item() == pytest.approx(distance.item(), rel=1e-5)
        memory.take(statistics, 0.9)
        expected = mixed


def test_one_local_step_answers_with_the_gradient_at_the_broadcast():
    teacher, asked = frozen("resnet8"), request()
    gradient, _ = dream_gradient(teacher, SCALE.from_pixels(pixels(asked)), asked)
    assert (dream_contribution(teacher, SCALE, asked)["gradient"] == gradient.numpy().ravel()).all()


@pytest.mark.parametrize("count", [2, 5])
def test_local_steps_really_move_and_answer_with_the_way_made(count):
    teacher, asked = frozen("resnet8"), request(local=LocalSteps(count, 0.05), clip=2.0)
    start = position = SCALE.from_pixels(pixels(asked))
    for _ in range(count):
        gradient, _ = dream_gradient(teacher, position, asked)
        position = (position - 0.05 / 2.0 * gradient).clamp(SCALE.low, SCALE.high)
    moved = dream_contribution(teacher, SCALE, asked)["gradient"]
    expected = (start - position) / (count * 0.05 / 2.0)
    assert moved == pytest.approx(expected.numpy().ravel(), abs=1e-5)
    once = dream_contribution(teacher, SCALE, request())["gradient"]
    assert abs(moved - once).max() > 1e-3


def student_of(logits, kind="jsd", weight=1.5):
    return Student(
        logits=logits.numpy().astype("<f4").tobytes(),
        classes=10,
        adversary=kind,
        weight=weight,
        bits=8,
        clip=1.0,
    )


def test_the_jensen_shannon_term_is_bounded_and_symmetric():
    far = torch.eye(10) * 1e4
    limit = torch.log(torch.tensor(2.0)).item()
    assert adversarial(far, far.roll(1, 0), "jsd").item() == pytest.approx(-limit, rel=1e-6)
    a, b = torch.randn(20, 10), torch.randn(20, 10)
    value = adversarial(a, b, "jsd")
    assert adversarial(b, a, "jsd").item() == pytest.approx(value.item(), rel=1e-5)
    assert adversarial(a, a, "jsd").item() == pytest.approx(0, abs=1e-6)
    m = (a.softmax(1) + b.softmax(1)) / 2
    definition = 0.5 * sum((p.softmax(1) * (p.softmax(1) / m).log()).sum(1).mean() for p in (a, b))
    assert value.item() == pytest.approx(-definition.item(), rel=1e-4)


def test_the_masked_divergence_counts_dreams_on_which_both_agree():
    a = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p, q = a.softmax(1)[0], b.softmax(1)[0]
    expected = -(p * (p / q).log()).sum() / 2
    assert adversarial(a, b, "kl").item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["jsd", "kl"])
def test_the_split_gradient_is_the_direct_gradient_through_teacher_and_student(kind):
    """D26: client's part at fixed s, plus (d R_adv / d s) times ds/dx, is the whole of it."""
    # Alike but for their statistics, so that they agree on most dreams.
    teacher, student = frozen("resnet8"), frozen("resnet8")
    for part in (teacher, student):
        part.model.double()
    dreams = torch.randn(60, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        logits = student(dreams)
    asked = request(60, student=student_of(logits, kind))
    own, towards_student = dream_gradient(teacher, dreams, asked, logits)
    leaf = dreams.clone().requires_grad_()
    (through,) = torch.autograd.grad(student(leaf), leaf, towards_student)
    leaf = dreams.clone().requires_grad_()
    direct = client_loss(teacher, leaf, asked, student(leaf))
    (expected,) = torch.autograd.grad(direct, leaf)
    assert torch.allclose(own + through, expected, rtol=1e-9, atol=1e-12)
    assert through.abs().max() > 1e-6


@pytest.mark.parametrize("local", [LocalSteps(), LocalSteps(3, 0.05)])
def test_parallel_batches_are_answered_as_if_each_were_alone(local):
    teacher = frozen("resnet8")
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    asked = request(6, batches=2, student=student_of(logits), local=local)
    together = dream_contribution(teacher, SCALE, asked)
    alone = [
        dream_contribution(
            teacher,
            SCALE,
            request(
                3,
                dreams=asked.dreams[part * 192 : (part + 1) * 192],
                student=student_of(logits[part * 3 : (part + 1) * 3]),
                local=local,
            ),
        )
        for part in range(2)
    ]
    for section, values in together.items():
        assert (values == np.concatenate([one[section] for one in alone])).all()
    one_batch = dream_contribution(teacher, SCALE, msgspec.structs.replace(asked, batches=1))
    assert abs(together["gradient"] - one_batch["gradient"]).max() > 1e-3


def test_during_local_steps_the_student_stays_as_published():
    teacher, student = frozen("resnet8"), frozen("resnet8", seed=5)
    start = SCALE.from_pixels(pixels(request()))
    asked = request(student=student_of(student(start)), local=LocalSteps(3, 0.05))
    _, at_start = dream_gradient(teacher, start, asked, student(start))
    answer = dream_contribution(teacher, SCALE, asked)
    assert answer["student"] == pytest.approx(at_start.numpy().ravel(), abs=1e-6)


def test_a_bf16_teacher_gives_float32_gradients_close_to_those_of_float32():
    teacher = frozen("resnet8")
    asked = request(count=8)
    dreams = SCALE.from_pixels(pixels(asked))
    exact, _ = dream_gradient(teacher, dreams, asked)
    rounded, _ = dream_gradient(dataclasses.replace(teacher, bf16=True), dreams, asked)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0)
    # bfloat16 keeps 8 bits of a number: a relative error of about 2^-8 in every layer.
    assert cosine > 0.98
