"""Soft labels of dreams: contributions, weights and targets."""

import msgspec
import numpy as np
import pytest
import torch

from codream_secure.aggregation.aggregator import FieldSum
from codream_secure.aggregation.requests import LabelRequest, LabelTerms
from codream_secure.aggregation.sections import sections
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import Scaling
from codream_secure.dreaming.feature_statistics import StatisticsMemory
from codream_secure.dreaming.labels import label_contribution, label_mean, soft_targets
from codream_secure.dreaming.teacher import Teacher
from protocols.quantization import Quantizer

# A scale under which the pixel 100 + v is the value v.
SCALE = PixelScale(Scaling((100 / 255,), (1 / 255,)))


def request(kind="probabilities", clip=0.5, temperature=4.0, **changes):
    values = {
        "version": 1,
        "round": 1,
        "batch": 0,
        "shape": (3, 1, 1, 4),
        "dreams": (LOGITS + 100).numpy().astype(np.uint8).tobytes(),
    }
    terms = {"bits": 8, "clip": clip, "kind": kind, "temperature": temperature, "classes": 4}
    terms |= {k: changes.pop(k) for k in LabelTerms.__struct_fields__ if k in changes}
    return LabelRequest(labels=LabelTerms(**terms), **(values | changes))


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)


TEACHER = Teacher(Flat(), StatisticsMemory())


LOGITS = torch.tensor([[3.0, -1.0, 1, 90.0], [0, 0, 0, 0], [-5.0, 5.0, 1.0, 2.0]])


def contribution(asked, teacher=TEACHER):
    return label_contribution(teacher, SCALE, asked)


def test_probabilities_are_taken_at_the_distillation_temperature_and_centred():
    values = contribution(request())["labels"]
    expected = (LOGITS / 4).softmax(1) - 0.5
    assert values.reshape(3, 4) == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.abs(values).max() <= 0.5


def test_logits_are_clipped_to_the_public_range():
    values = contribution(request("logits", clip=20.0))["labels"]
    assert values.max() == 20
    assert values.reshape(3, 4)[2] == pytest.approx([-5, 5, 1, 2], abs=1e-4)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_targets_of_one_teacher_are_its_own_softened_prediction(kind):
    asked = request(kind, clip=100.0 if kind == "logits" else 0.5)
    targets = soft_targets(contribution(asked)["labels"], asked)
    assert targets.numpy() == pytest.approx((LOGITS / 4).softmax(1).numpy(), abs=1e-5)


def summed(asked, logits):
    """What the server gets of teachers with these logits, quantized finely."""
    wanted, totals = sections(asked), {}
    for index, own in enumerate(logits):
        teacher = Teacher(lambda x, own=own: own, StatisticsMemory())
        for section in wanted:
            codes = Quantizer(section.maximum, section.clip).encode(
                contribution(asked, teacher)[section.name],
                seed=bytes([index] * 32),
                step=0,
                section=section.name,
            )
            totals[section.name] = totals.get(section.name, 0) + codes
    return FieldSum(totals, len(logits), wanted)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_confident_clients_count_for_more_where_they_are_confident(kind):
    asked = request(kind, clip=20.0 if kind == "logits" else 0.5, bits=16, weighting="confidence")
    logits = [torch.randn(3, 4, generator=torch.Generator().manual_seed(k)) * 4 for k in range(5)]
    weights = []
    for own in logits:
        p = own.softmax(1)
        weights.append(1 + (p * p.log()).sum(1) / np.log(4))
    values = [own if kind == "logits" else (own / 4).softmax(1) for own in logits]
    mean = sum(w[:, None] * v for w, v in zip(weights, values, strict=True)) / sum(weights)[:, None]
    expected = (mean / 4).softmax(1) if kind == "logits" else mean
    targets = soft_targets(label_mean(summed(asked, logits), asked), asked)
    assert targets.numpy() == pytest.approx(expected.numpy(), abs=2e-3)


def test_where_nobody_is_confident_the_target_stays_a_distribution():
    asked = request(bits=8, weighting="confidence")
    targets = soft_targets(label_mean(summed(asked, [torch.zeros(3, 4)] * 3), asked), asked)
    assert torch.isfinite(targets).all()
    assert targets.sum(1).numpy() == pytest.approx(np.ones(3))


def test_finished_dreams_enter_the_statistics_memory_only_if_asked():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten()).eval()
    teacher = Teacher(model, StatisticsMemory())
    contribution(request(), teacher)
    assert teacher.memory._moments == []
    contribution(request(statistics_momentum=0.9), teacher)
    assert len(teacher.memory._moments) == 1


def test_parallel_batches_enter_the_statistics_memory_one_after_another():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten()).eval()
    together, alone = (Teacher(model, StatisticsMemory()) for _ in range(2))
    both = request(statistics_momentum=0.9)
    count, *rest = both.shape
    both = msgspec.structs.replace(
        both, shape=(2 * count, *rest), dreams=both.dreams + both.dreams[::-1], batches=2
    )
    found = contribution(both, together)["labels"]
    parts = [
        contribution(
            msgspec.structs.replace(both, shape=(count, *rest), dreams=d, batches=1), alone
        )
        for d in (both.dreams[: len(both.dreams) // 2], both.dreams[len(both.dreams) // 2 :])
    ]
    assert (found == np.concatenate([part["labels"] for part in parts])).all()
    for here, there in zip(together.memory.state(), alone.memory.state(), strict=True):
        assert all((a == b).all() for a, b in zip(here, there, strict=True))


def test_targets_are_a_distribution_also_after_rounding():
    targets = soft_targets(np.array([-0.51, 0.49, -0.5, -0.5] * 3), request())
    assert (targets >= 0).all()
    assert targets.sum(1).numpy() == pytest.approx(np.ones(3))
