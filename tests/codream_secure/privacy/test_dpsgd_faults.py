"""What DP-SGD must survive: hostile examples, aborted steps, changed modes, odd models.

And a check of the checks: three broken mechanisms that the statistics must tell from the right one.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from codream_secure.errors import UserError
from codream_secure.learning.learner import PrivateLearner
from codream_secure.privacy import dpsgd
from codream_secure.privacy.budget import BudgetExhausted, PrivacyBudget
from codream_secure.privacy.dpsgd import PrivateTrainer, randomness
from codream_secure.privacy.model_checks import check_private_model

CLIP, BATCH = 0.5, 16.0
DRAW = torch.Generator().manual_seed(1)
X = torch.randn(16, 1, 4, 4, generator=DRAW)
Y = torch.randint(0, 10, (16,), generator=DRAW)
# Far below any difference looked for here, and still a valid noise multiplier.
ALMOST_NONE = 1e-9


def small_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 10))


def trainer(model=None, **changes):
    options = {
        "clip": CLIP,
        "noise_multiplier": 1.0,
        "sampling_rate": 1.0,
        "expected_batch": BATCH,
        "learning_rate": 1.0,
        "budget": PrivacyBudget(10_000),
        "seed": 0,
        **changes,
    }
    return PrivateTrainer(model or small_model(), **options)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def update(x, y, **changes):
    one = trainer(**changes)
    before = flat(one.model)
    one.step(x, y)
    return before - flat(one.model)


@pytest.mark.parametrize("pixel", [float("inf"), float("-inf"), float("nan"), 1e30, 3e38])
def test_no_example_can_shout_over_the_noise(pixel):
    """Opacus' clipping turns a gradient that is not finite into NaN in every weight."""
    hostile = X.clone()
    hostile[-1, 0, 0, 0] = pixel
    with_it = update(hostile, Y, noise_multiplier=ALMOST_NONE)
    without = update(X[:-1], Y[:-1], noise_multiplier=ALMOST_NONE)
    assert torch.isfinite(with_it).all()
    assert (with_it - without).norm().item() <= CLIP / BATCH * (1 + 1e-4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e8]),
    clip=st.sampled_from([0.01, 0.5, 20.0]),
    rate=st.sampled_from([1.0, 1e-12]),
)
def test_neighbouring_data_sets_are_one_clip_apart(seed, scale, clip, rate):
    draw = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(5, 1, 4, 4, generator=draw)
    y = torch.randint(0, 10, (5,), generator=draw)
    options = {
        "model": small_model(seed),
        "clip": clip,
        "noise_multiplier": ALMOST_NONE,
        "sampling_rate": rate,
    }
    all_five = update(x, y, **options)
    four = update(x[1:], y[1:], **(options | {"model": small_model(seed)}))
    # Weights near 1 lose differences below 1e-7 each.
    assert (all_five - four).norm().item() <= clip / BATCH * (1 + 1e-3) + 5e-6


@pytest.mark.parametrize("examples", [0, 1])
def test_a_client_with_next_to_no_examples_takes_noisy_steps_as_well(examples):
    moved = update(X[:examples], Y[:examples])
    assert moved.std().item() == pytest.approx(CLIP / BATCH, rel=0.1)


def test_a_crashed_step_leaves_no_private_tensor_and_the_next_step_is_right():
    one, other = trainer(noise_multiplier=ALMOST_NONE), trainer(noise_multiplier=ALMOST_NONE)
    with pytest.raises(IndexError):
        one.step(X, Y + 1000)
    assert not any(vars(m).keys() & {"activations", "max_batch_len"} for m in one.model.modules())
    for p in one.model.parameters():
        assert p.grad is None
        assert p.grad_sample is None
        assert p.summed_grad is None
    one.step(X[:7], Y[:7])
    other.step(X[:7], Y[:7])
    assert torch.allclose(flat(one.model), flat(other.model), atol=1e-7)


def test_the_charge_comes_before_the_data():
    budget = PrivacyBudget(2)
    one = trainer(budget=budget)
    with pytest.raises(TypeError):
        one.step(None, None)
    assert budget.charged == 1
    one.step(X, Y)
    with pytest.raises(BudgetExhausted):
        one.step(None, None)
    assert budget.charged == budget.total == 2


def test_evaluation_in_between_does_not_disarm_the_hooks():
    one = trainer(noise_multiplier=ALMOST_NONE)
    one.model.eval()
    before = flat(one.model)
    one.step(X, Y)
    assert torch.allclose(
        before - flat(one.model), update(X, Y, noise_multiplier=ALMOST_NONE), atol=1e-7
    )


@pytest.mark.parametrize("public", [torch.optim.SGD, torch.optim.Adam])
def test_public_gradients_never_reach_a_private_step(public):
    """The same weights release the same, whatever public training left on the parameters."""
    one = trainer()
    optimizer = public(one.model.parameters(), lr=0.05)
    for _ in range(3):
        F.cross_entropy(one.model(X * 5), Y).backward()
        optimizer.step()
        # Left on purpose: gradients of the public loss stay in p.grad.
        assert one.model[1].weight.grad.abs().sum() > 0
        fresh_model = small_model()
        fresh_model.load_state_dict(one.model.state_dict())
        fresh = trainer(fresh_model)
        fresh._draw.bit_generator.state = one._draw.bit_generator.state
        one.step(X, Y)
        fresh.step(X, Y)
        assert torch.equal(flat(one.model), flat(fresh.model))


def test_dream_gradients_go_through_a_clean_frozen_copy():
    one = trainer()
    learner = PrivateLearner(one, (X, Y), learning_rate=0.01)
    learner.local_step()
    frozen = learner.frozen_copy()
    dreams = X.clone().requires_grad_()
    F.cross_entropy(frozen(dreams), Y).backward()
    assert dreams.grad.abs().sum() > 0
    assert not frozen.training
    for p in frozen.parameters():
        assert not p.requires_grad
        assert getattr(p, "grad_sample", None) is None
    before = flat(one.model)
    learner.local_step()
    assert torch.isfinite(flat(one.model)).all()
    assert not torch.equal(before, flat(one.model))


def noise_of_steps(steps=60):
    """Return the noise alone, in units of what was accounted for: rows are steps."""
    one = trainer(sampling_rate=1e-12, learning_rate=1.0)
    rows = []
    for _ in range(steps):
        before = flat(one.model)
        one.step(X, Y)
        rows.append((before - flat(one.model)) / (CLIP / BATCH))
    return torch.stack(rows).double().numpy()


def is_standard_normal(noise):
    """Check four things with 5-sigma intervals: mean, variance, kurtosis, independence of steps."""
    n = noise.size
    along_steps = np.mean(noise[1:] * noise[:-1])
    return (
        abs(noise.mean()) < 5 / np.sqrt(n)
        and abs(noise.var() - 1) < 5 * np.sqrt(2 / n)
        and abs(np.mean(noise**4) - 3) < 5 * np.sqrt(96 / n)
        and abs(along_steps) < 5 / np.sqrt(n)
    )


def test_noise_is_standard_normal_and_independent_from_step_to_step():
    assert is_standard_normal(noise_of_steps())


class Halved(dpsgd._Optimizer):
    def add_noise(self):
        self.noise_multiplier /= 2
        super().add_noise()
        self.noise_multiplier *= 2


class Silent(dpsgd._Optimizer):
    def add_noise(self):
        for p in self.params:
            p.grad = p.summed_grad.view_as(p)


class Repeated(dpsgd._Optimizer):
    def add_noise(self):
        self._draw = randomness(0)
        super().add_noise()


class Unclipped(dpsgd._Optimizer):
    def clip_and_accumulate(self):
        self.max_grad_norm, clip = 1e9, self.max_grad_norm
        super().clip_and_accumulate()
        self.max_grad_norm = clip


@pytest.mark.parametrize("broken", [Halved, Silent, Repeated])
def test_the_noise_check_catches_broken_noise(monkeypatch, broken):
    monkeypatch.setattr(dpsgd, "_Optimizer", broken)
    assert not is_standard_normal(noise_of_steps())


def test_the_sensitivity_check_catches_missing_clipping(monkeypatch):
    monkeypatch.setattr(dpsgd, "_Optimizer", Unclipped)
    big = 100 * X
    with_it = update(big, Y, noise_multiplier=ALMOST_NONE)
    without = update(big[1:], Y[1:], noise_multiplier=ALMOST_NONE)
    assert (with_it - without).norm().item() > 2 * CLIP / BATCH


def test_torch_uses_32_bits_of_a_seed_and_this_generator_more():
    """Why noise is not drawn by torch."""
    first = torch.randn(4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(first, torch.randn(4, generator=torch.Generator().manual_seed(7 + 2**32)))
    assert randomness(7).bytes(8) != randomness(7 + 2**32).bytes(8)


def test_the_whole_key_comes_from_the_operating_system(monkeypatch):
    asked = []
    monkeypatch.setattr(dpsgd.secrets, "randbits", lambda bits: asked.append(bits) or 2**127 + 5)
    key = randomness(None).bit_generator.state["state"]["key"]
    assert asked == [128]
    assert key.tolist() == [5, 2**63]


class Buffered(nn.Linear):
    def __init__(self):
        super().__init__(16, 10)
        self.register_buffer("memory", torch.zeros(10))


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), Buffered()], ids=["lstm", "buffer"])
def test_layers_that_opacus_cannot_train_are_a_user_error(layer):
    with pytest.raises(UserError, match="cannot be trained with DP-SGD"):
        check_private_model(nn.Sequential(layer))


@pytest.mark.parametrize("training", [True, False])
def test_checking_accepts_a_model_in_any_mode_and_leaves_it(training):
    model = small_model().train(training)
    check_private_model(model)
    assert all(m.training is training for m in model.modules())
