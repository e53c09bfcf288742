"""The audit of one training run holds for a right trainer and finds missing noise."""

import pytest
import torch
from trainers import planted

from codream_secure.audit.one_run import audit_one_run


@pytest.fixture(scope="module")
def digits():
    draw = torch.Generator().manual_seed(0)
    return torch.rand((200, 1, 8, 8), generator=draw), torch.arange(200) % 10


def test_one_run_holds_and_sees_something(digits):
    found = audit_one_run(*digits, 10, 8.0)
    assert found.holds
    assert found.found > 1


def test_one_run_finds_that_noise_is_off(digits):
    found = audit_one_run(*digits, 10, 2.0, make=planted(noise_multiplier=lambda _: 1e-6))
    assert not found.holds
    assert found.correct == found.guesses
