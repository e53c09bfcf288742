import numpy as np
import pytest
import torch
from peers import (
    ONE_STEP,
    SLOW_SGD,
    after,
    assert_masks_change_nothing,
    batch_of,
    build,
    one_hot,
    softmax,
    stepped,
)
from torch import nn

from codream_secure.baselines.class_rows import ClassRows
from codream_secure.baselines.fedproto import NearestPrototype
from codream_secure.models.tensors import tensors_of

SKEWED = {**ONE_STEP, "partition": "dirichlet:0.3", "models": "mlp"}


def mlps(run):
    """Return the four arrays of each client's MLP, float64."""
    return {
        c: [v.double().numpy() for v in tensors_of(m).values()]
        for c, m in run.baseline._models.items()
    }


def mean_features(run, client, model):
    """Return a client's mean features by class, and which classes it has."""
    x, y = batch_of(run, client)
    labels = one_hot(y)
    counts = labels.sum(axis=0)
    hidden = np.tanh(x @ model[0].T + model[1])
    return labels.T @ hidden / np.maximum(counts, 1)[:, None], counts > 0


@pytest.mark.parametrize(
    ("name", "setting"), [("fedproto", "proto_weight"), ("fedtgp", "tgp_weight")]
)
def test_a_client_pulls_its_class_means_to_the_prototypes(tiny, name, setting):
    weight = 20.0
    run = after(build(tiny, name, SKEWED, **SLOW_SGD, tgp_epochs=2, **{setting: weight}), 1)
    before, prototypes = mlps(run), run.baseline.prototypes
    known, wanted = prototypes.owned.numpy(), prototypes.rows.double().numpy()
    after(run, 1)
    for client, (w1, b1, w2, b2) in before.items():
        x, y = batch_of(run, client)
        labels, hidden = one_hot(y), np.tanh(x @ w1.T + b1)
        own, owned = mean_features(run, client, (w1, b1))
        both = owned & known
        gap = np.where(both[:, None], own - wanted, 0) * 2 / (both.sum() * hidden.shape[1])
        gradient = (softmax(hidden @ w2.T + b2) - labels) / len(y)
        pull = weight * (gap / np.maximum(labels.sum(axis=0), 1)[:, None])[y]
        inner = (gradient @ w2 + pull) * (1 - hidden**2)
        numbers = [*stepped(w1, b1, x, inner, 0.1), *stepped(w2, b2, hidden, gradient, 0.1)]
        for value, number in zip(mlps(run)[client], numbers, strict=True):
            np.testing.assert_allclose(value, number, atol=1e-5)


def test_prototypes_are_means_over_the_owners_of_a_class(tiny):
    run = after(build(tiny, "fedproto", SKEWED, **SLOW_SGD), 1)
    rows, owned = zip(*(mean_features(run, c, m) for c, m in mlps(run).items()), strict=True)
    owners = np.sum(owned, axis=0)
    assert owners.min() < 4
    found = run.baseline.prototypes
    np.testing.assert_array_equal(found.counts, owners)
    mean = np.sum(rows, axis=0) / np.maximum(owners, 1)[:, None]
    np.testing.assert_allclose(found.rows, mean, atol=1e-6)


@pytest.mark.parametrize(
    "partition", [pytest.param("iid", marks=pytest.mark.slow), "dirichlet:0.3"]
)
def test_masks_change_nothing_but_bytes(tiny, partition):
    options = {"models": "mlp,resnet8", "width": 4, "partition": partition}
    assert_masks_change_nothing(tiny, "fedproto", options)


def test_sixteen_masked_bits_are_close_to_floats(tiny):
    clear, masked = (
        after(build(tiny, name, SKEWED), 1).baseline.prototypes
        for name in ("fedproto", "fedproto-secure")
    )
    np.testing.assert_array_equal(clear.counts, masked.counts)
    np.testing.assert_allclose(clear.rows, masked.rows, atol=2e-3)


def test_the_nearest_prototype_decides_and_a_class_without_one_never_does():
    prototypes = ClassRows(
        torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]), torch.tensor([2, 1, 0])
    )
    model = nn.Linear(2, 3)
    x = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    logits = NearestPrototype(model, prototypes)(x)
    # Mean squared distances of (1, 0) are 0.5 and (4 + 16) / 2; of (3, 3) they are 9 and 0.5.
    wanted = torch.tensor([[-0.5, -10.0, -torch.inf], [-9.0, -0.5, -torch.inf]])
    assert torch.allclose(logits, wanted)
    nobody = ClassRows.none(3, 2, torch.device("cpu"))
    assert torch.equal(NearestPrototype(model, nobody)(x), model(x))
