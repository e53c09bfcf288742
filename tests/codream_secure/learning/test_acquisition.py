"""The order of learning: distillation steps and local steps."""

import pytest
import torch

from codream_secure.dreaming.buffer import DreamBuffer
from codream_secure.learning.acquisition import AcquisitionSettings, acquire, distil


class Recorder:
    def __init__(self):
        self.steps = ""

    def set_rate(self, share):
        assert share == 1.0

    def local_step(self):
        self.steps += "L"

    def distillation_step(self, dreams, targets, temperature):
        self.steps += "D"

    def joint_step(self, dreams, targets, temperature):
        self.steps += "J"


def learn(order, local_steps, batches=3):
    buffer = DreamBuffer(9)
    for _ in range(batches):
        buffer.add(torch.zeros(2, 1), torch.zeros(2, 1))
    settings = AcquisitionSettings(
        order=order,
        kd_epochs=2,
        kd_batch=2,
        kd_temperature=4.0,
        augmentation="none",
        local_steps=local_steps,
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
    buffer.add(torch.zeros(2, 1), torch.zeros(2, 1))
    settings = AcquisitionSettings(
        order="joint",
        kd_epochs=3,
        kd_batch=2,
        kd_temperature=4.0,
        augmentation="none",
        local_steps=7,
    )
    learner = Recorder()
    distil(learner, buffer, settings, torch.Generator())
    assert learner.steps == "DDD"
