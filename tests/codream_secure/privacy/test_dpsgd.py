"""DP-SGD measured: sensitivity, noise, sampling, charging. A broken mechanism fails here."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from codream_secure.data.spec import InputSpec
from codream_secure.models.build import build_model
from codream_secure.models.names import MODEL_NAMES
from codream_secure.privacy.budget import BudgetExhausted, PrivacyBudget
from codream_secure.privacy.dpsgd import PrivateTrainer, randomness

SPEC = InputSpec(1, 8, 8, 10)
CLIP, BATCH, RATE = 0.5, 20, 1.0
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(24, 1, 8, 8, generator=DRAW)
Y = torch.randint(0, 10, (24,), generator=DRAW)


def small(name):
    """Build a model; other architectures than `mlp` and `linear` narrower than their own."""
    width = None if name in {"mlp", "linear"} else 4
    return build_model(name, SPEC, norm="group", seed=0, width=width)


def trainer(model=None, *, noise=0.0, rate=RATE, steps=10_000, seed=0, name="mlp", integers=False):
    if model is None:
        model = small(name)
    return PrivateTrainer(
        model,
        clip=CLIP,
        noise_multiplier=noise,
        sampling_rate=rate,
        expected_batch=BATCH,
        learning_rate=1.0,
        budget=PrivacyBudget(steps),
        seed=seed,
        integers=integers,
    )


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def update(x, y, **options):
    """Return minus what one step adds to the parameters: the released average gradient."""
    one = trainer(**options)
    before = flat(one.model)
    one.step(x, y)
    return before - flat(one.model)


def clipped_mean(x, y, name="mlp"):
    """The definition, one example at a time, with nothing of Opacus."""
    model = small(name)
    total = torch.zeros_like(flat(model))
    for k in range(len(y)):
        loss = F.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
        total += gradient * min(1.0, CLIP / gradient.norm().item())
    return total / BATCH


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_without_noise_a_step_is_the_mean_of_clipped_gradients(name):
    assert torch.allclose(
        update(X[:6], Y[:6], name=name), clipped_mean(X[:6], Y[:6], name), atol=1e-5
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_one_example_moves_a_step_by_at_most_the_clip(scale):
    """Adding an example, however large, changes the released sum by at most C."""
    outlier = X.clone()
    outlier[-1] *= scale
    difference = update(outlier, Y) - update(outlier[:-1], Y[:-1])
    assert difference.norm().item() <= CLIP / BATCH * (1 + 1e-4)
    if scale > 1:
        assert difference.norm().item() > 0.9 * CLIP / BATCH


def test_the_denominator_does_not_depend_on_the_number_of_examples():
    twice = update(torch.cat([X, X]), torch.cat([Y, Y]))
    assert torch.allclose(twice, 2 * update(X, Y), atol=1e-6)


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_noise_has_the_standard_deviation_that_was_accounted_for(noise):
    """Noise off, halved or clipped away is far outside this interval."""
    clean = update(X, Y)
    draws = torch.stack([update(X, Y, noise=noise, seed=seed) for seed in range(8)])
    measured = (draws - clean).std().item()
    assert measured == pytest.approx(noise * CLIP / BATCH, rel=0.03)


def test_noise_reaches_every_parameter():
    noisy = update(X, Y, noise=1.0) - update(X, Y)
    assert (noisy != 0).all()


def test_an_empty_draw_still_takes_a_noisy_step_and_is_charged():
    one = trainer(noise=1.0, rate=1e-12)
    before = flat(one.model)
    one.step(X, Y)
    moved = flat(one.model) - before
    assert torch.isfinite(moved).all()
    assert moved.std().item() == pytest.approx(CLIP / BATCH, rel=0.05)
    assert one._budget.charged == 1


def test_poisson_sampling_draws_each_example_at_the_rate():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    one = trainer(linear, rate=0.25)
    sizes = []
    linear.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for _ in range(400):
        one.step(X, Y)
    assert np.mean(sizes) == pytest.approx(6, abs=0.6)
    assert np.var(sizes) == pytest.approx(24 * 0.25 * 0.75, rel=0.3)


def test_beyond_the_budget_nothing_is_computed():
    one = trainer(steps=1)
    one.step(X, Y)
    before = flat(one.model)
    with pytest.raises(BudgetExhausted):
        one.step(X, Y)
    assert (flat(one.model) == before).all()


def test_a_step_that_crashes_stays_charged():
    one = trainer(steps=2)
    with pytest.raises(IndexError):
        one.step(X, Y + 1000)
    assert one._budget.charged == 1


def test_public_steps_between_private_ones_change_nothing_but_the_weights():
    """A private step after a public one releases what it would on a fresh trainer."""
    one = trainer(noise=1.0)
    one.step(X, Y)
    public = torch.optim.Adam(one.model.parameters(), lr=0.01)
    F.cross_entropy(one.model(X), Y).backward()
    public.step()
    here = flat(one.model)
    fresh = trainer(copy.deepcopy(one.model), noise=1.0, seed=99)
    # Give the fresh trainer the state of the first one's randomness.
    fresh._draw.bit_generator.state = one._draw.bit_generator.state
    one.step(X, Y)
    fresh.step(X, Y)
    assert torch.allclose(here - flat(one.model), here - flat(fresh.model), atol=1e-6)


def test_a_copy_of_the_model_carries_no_hooks_and_no_per_example_gradients():
    one = trainer(noise=1.0)
    one.step(X, Y)
    twin = copy.deepcopy(one.model)
    for module in twin.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(getattr(p, "grad_sample", None) is None for p in twin.parameters())


def test_a_seed_reproduces_noise_and_draws():
    assert torch.equal(update(X, Y, noise=1.0, seed=7), update(X, Y, noise=1.0, seed=7))


def test_without_a_seed_no_two_runs_draw_the_same_noise():
    assert not torch.equal(update(X, Y, noise=1.0, seed=None), update(X, Y, noise=1.0, seed=None))
    states = {randomness(None).bytes(16) for _ in range(50)}
    assert len(states) == 50


# Integers ----------------------------------------------------------------------------------------


def test_in_integers_a_step_is_the_mean_of_clipped_gradients_nearly():
    found = update(X[:6], Y[:6], noise=1e-3, integers=True)
    expected = clipped_mean(X[:6], Y[:6])
    assert (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("seed", [None, 3])
def test_integer_noise_has_the_variance_that_was_asked_for(seed):
    draws = update(X[:0], Y[:0], noise=2.0, integers=True, seed=seed) * BATCH / (2.0 * CLIP)
    assert draws.numel() > 1000
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], draws.numel() - 1) / (draws.numel() - 1)
    assert low < float(draws.var()) < high


def test_integer_noise_is_new_at_every_step_and_in_every_process():
    one = trainer(noise=2.0, integers=True, seed=None)
    weights = [flat(one.model)]
    for _ in range(2):
        one.step(X[:0], Y[:0])
        weights.append(flat(one.model))
    first, second = weights[1] - weights[0], weights[2] - weights[1]
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, -update(X[:0], Y[:0], noise=2.0, integers=True, seed=None))
    same = [update(X, Y, noise=2.0, integers=True, seed=4) for _ in range(2)]
    assert torch.equal(*same)


def test_integers_and_sampled_batches_do_not_go_together():
    with pytest.raises(ValueError, match="sampled"):
        trainer(integers=True, rate=0.5)
