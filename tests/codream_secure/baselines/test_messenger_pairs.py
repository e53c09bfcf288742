"""The messenger: a small common model, averaged beside private models of any architecture."""

import copy

import numpy as np
import pytest
import torch
from peers import after, build
from torch.nn import functional as F

from codream_secure.data.augment import cut_mixed
from codream_secure.errors import UserError
from codream_secure.models.tensors import tensors_of

MODELS = "linear,mlp,lenet5"


SMALL = {"messenger": "linear", "local_epochs": 1}


def start(tiny, name="messenger-secure-8bit", options=None, **settings):
    """Return a run of clients with three architectures that has not begun."""
    own = {"messenger": "mlp", "local_epochs": 1, **settings}
    return build(tiny, name, {"models": MODELS, **(options or {})}, **own)


def test_models_of_different_architectures_learn_with_one_messenger(tiny):
    run = after(start(tiny, options={"local_loss": "balanced", "partition": "dirichlet:1"}), 4)
    last = run.observer.history[-1]
    assert np.mean(last.clients) > 0.7
    assert last.server > 0.7
    sizes = {sum(p.numel() for p in model.parameters()) for model in run.client_models().values()}
    assert len(sizes) == 3


def kl(logits, other, temperature):
    """Return T^2 KL(other || logits), the mean over the minibatch, spelled out."""
    p, q = (other / temperature).softmax(1), (logits / temperature).softmax(1)
    return temperature**2 * (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("mix", [False, True])
def test_a_client_step_is_two_gradient_steps_of_two_losses(tiny, mix):
    """Recomputes the first step of one client with SGD: 1.9 times the gradient (Nesterov)."""
    options = {"optimizer": "sgd", "learning_rate": 0.01, "local_loss": "balanced"}
    run = start(tiny, options=options, messenger_mix=mix)
    pair, party = run.baseline._pairs[1], run._clients[1]
    again = copy.deepcopy((pair.private, pair.messenger))
    stream = copy.deepcopy(party.batches)
    draw = torch.Generator()
    draw.set_state(pair.draw.get_state())
    pair.step()

    x, y = stream.next()
    local = run.federation.examples(1)
    counts = torch.bincount(local.y, minlength=10).float().clamp(min=0.5).log()
    own, common = (model(x) for model in again)
    losses = [
        F.cross_entropy(own + counts, y) + kl(own, common.detach(), 2.0),
        F.cross_entropy(common + counts, y) + kl(common, own.detach(), 2.0),
    ]
    if mix:
        mixed = cut_mixed(x, draw)
        losses[0] = losses[0] + kl(again[0](mixed), again[1](mixed).detach(), 2.0)
    for model, loss, stepped in zip(again, losses, (pair.private, pair.messenger), strict=True):
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        pairs = zip(model.parameters(), gradients, stepped.parameters(), strict=True)
        for weight, gradient, found in pairs:
            assert torch.allclose(found, weight - 0.019 * gradient, atol=1e-5)
    assert party.work.trained == (3 if mix else 2) * len(x)
    assert party.work.inferred == (len(x) if mix else 0)


def test_the_server_adds_the_mean_of_the_messengers_updates(tiny):
    run = start(tiny, "messenger")
    before = tensors_of(run.server_model())
    after(run, 1)
    copies = [tensors_of(pair.messenger) for pair in run.baseline._pairs.values()]
    for name, value in tensors_of(run.server_model()).items():
        mean = torch.stack([one[name] for one in copies]).mean(0)
        assert torch.allclose(value, mean, atol=1e-5)
        assert not torch.equal(value, before[name])


def test_masks_change_nothing_but_bytes(tiny):
    clear, masked = (
        after(start(tiny, f"messenger{s}-8bit", {"dropout": 0.1}), 2) for s in ("", "-secure")
    )
    for name, value in tensors_of(clear.server_model()).items():
        assert torch.equal(value, tensors_of(masked.server_model())[name])
    assert masked.ledger.per_client("up") > clear.ledger.per_client("up")


def test_only_the_messenger_travels(tiny):
    """Private models of any size leave the bytes as they are."""
    small, large = (
        after(build(tiny, "messenger-8bit", {"models": m}, **SMALL), 1)
        for m in ("linear", "resnet8")
    )
    for way in ("up", "down"):
        assert small.ledger.per_client(way) == large.ledger.per_client(way)


def test_cut_and_mixed_images_have_one_square_of_another_image():
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 8, 8).contiguous()
    mixed = cut_mixed(images, torch.Generator().manual_seed(3))
    changed = (mixed != images).any(dim=1)
    rows, columns = changed.any(0).any(1).nonzero(), changed.any(0).any(0).nonzero()
    assert len(rows) == len(columns) >= 2
    for before, image in zip(images, mixed, strict=True):
        assert set(image.unique().tolist()) <= {float(before.unique()), *range(6)}
        assert len(image.unique()) <= 2
    assert sorted(mixed[:, 0, rows[0], columns[0]].flatten().tolist()) == [0, 1, 2, 3, 4, 5]


def test_an_unknown_messenger_is_one_line(tiny):
    with pytest.raises(UserError, match="nonsense"):
        start(tiny, messenger="nonsense")
