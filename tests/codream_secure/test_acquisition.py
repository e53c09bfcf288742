"""Soft labels, the dream buffer and the order of learning."""

import numpy as np
import pytest
import torch

from codream_secure.acquisition import (
    AcquisitionSettings,
    DreamBuffer,
    acquire,
    distil,
    label_contribution,
    soft_targets,
)
from codream_secure.messages import LabelRequest


def request(kind="probabilities", clip=0.5, temperature=4.0, count=3, classes=4):
    return LabelRequest(
        version=1,
        round=1,
        batch=0,
        shape=(count, 1, 1, classes),
        dreams=bytes(count * classes),
        bits=8,
        clip=clip,
        kind=kind,
        temperature=temperature,
        classes=classes,
    )


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)


LOGITS = torch.tensor([[3.0, -1.0, 0.5, 90.0], [0, 0, 0, 0], [-5.0, 5.0, 1.0, 2.0]]).reshape(
    3, 1, 1, 4
)


def test_probabilities_are_taken_at_the_distillation_temperature_and_centred():
    values = label_contribution(Flat(), LOGITS, request())
    expected = (LOGITS.flatten(1) / 4).softmax(1) - 0.5
    assert values.reshape(3, 4) == pytest.approx(expected.numpy(), abs=1e-6)
    assert np.abs(values).max() <= 0.5


def test_logits_are_clipped_to_the_public_range():
    values = label_contribution(Flat(), LOGITS, request("logits", clip=20.0))
    assert values.max() == 20
    assert values.reshape(3, 4)[2] == pytest.approx([-5, 5, 1, 2])


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_targets_of_one_teacher_are_its_own_softened_prediction(kind):
    asked = request(kind, clip=100.0 if kind == "logits" else 0.5)
    targets = soft_targets(label_contribution(Flat(), LOGITS, asked), asked)
    assert targets.numpy() == pytest.approx((LOGITS.flatten(1) / 4).softmax(1).numpy(), abs=1e-6)


def test_targets_are_a_distribution_also_after_rounding():
    targets = soft_targets(np.array([-0.51, 0.49, -0.5, -0.5] * 3), request())
    assert (targets >= 0).all()
    assert targets.sum(1).numpy() == pytest.approx(np.ones(3))


def batch_of(value, count=2):
    return torch.full((count, 1), float(value)), torch.full((count, 1), float(value))


def test_the_buffer_forgets_the_oldest_batch_first():
    buffer = DreamBuffer(2)
    for value in range(3):
        buffer.add(*batch_of(value))
    seen = torch.cat([x for x, _ in buffer.epochs(1, 3, torch.Generator())])
    assert sorted(seen.flatten().tolist()) == [1, 1, 2, 2]
    assert len(buffer) == 4


def test_every_epoch_passes_each_dream_once_with_its_own_target():
    buffer = DreamBuffer(4)
    for value in range(4):
        buffer.add(*batch_of(value))
    pairs = list(buffer.epochs(2, 3, torch.Generator()))
    assert all((x == y).all() for x, y in pairs)
    assert sorted(torch.cat([x for x, _ in pairs]).flatten().tolist()) == sorted([0, 1, 2, 3] * 4)


class Recorder:
    def __init__(self):
        self.steps = ""

    def local_step(self):
        self.steps += "L"

    def distillation_step(self, dreams, targets, temperature):
        self.steps += "D"

    def joint_step(self, dreams, targets, temperature):
        self.steps += "J"


def learn(order, local_steps, batches=3):
    buffer = DreamBuffer(9)
    for value in range(batches):
        buffer.add(*batch_of(value))
    settings = AcquisitionSettings(
        order=order, kd_epochs=2, kd_batch=2, kd_temperature=4.0, local_steps=local_steps
    )
    learner = Recorder()
    acquire(learner, buffer, settings, torch.Generator())
    return learner.steps


def test_two_stages_distil_first_and_learn_locally_after():
    assert learn("two-stage", 2) == "DDDDDDLL"


def test_joint_order_spreads_local_steps_evenly():
    assert learn("joint", 3) == "JJLJJLJJL"
    assert learn("joint", 8).count("L") == 8


@pytest.mark.parametrize("order", ["joint", "two-stage"])
def test_without_dreams_the_local_steps_are_still_taken(order):
    assert learn(order, 5, batches=0) == "LLLLL"


def test_a_student_only_distils():
    buffer = DreamBuffer(1)
    buffer.add(*batch_of(1))
    settings = AcquisitionSettings(
        order="joint", kd_epochs=3, kd_batch=2, kd_temperature=4.0, local_steps=7
    )
    learner = Recorder()
    distil(learner, buffer, settings, torch.Generator())
    assert learner.steps == "DDD"
