import numpy as np
import pytest
import torch
from peers import ONE_STEP, after, build, one_hot, softmax

from codream_secure.baselines.class_rows import fit
from codream_secure.baselines.fedtgp import Prototypes, contrast, margin


def by_hand(values, classes, prototypes, space):
    """Return the contrastive loss and its gradient with respect to the prototypes."""
    gaps = values[:, None] - prototypes
    apart = np.sqrt((gaps**2).sum(axis=2))
    labels = one_hot(classes, len(prototypes))
    p = softmax(-(apart + space * labels))
    of_apart = -(p - labels) / len(values)
    gradient = (of_apart[:, :, None] * -gaps / apart[:, :, None]).sum(axis=0)
    return -np.log(p[labels == 1]).mean(), gradient


def test_a_step_of_the_server_is_that_of_the_paper():
    space, rate = 1.5, 0.2
    draw = np.random.default_rng(0)
    values, classes = draw.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    model = Prototypes(3, 4).double()
    start = [v.numpy().copy() for v in model.state_dict().values()]
    e, w1, b1, w2, b2 = start
    hidden = np.maximum(e @ w1.T + b1, 0)
    loss, gradient = by_hand(values, classes, hidden @ w2.T + b2, space)
    rows = torch.from_numpy(values), torch.from_numpy(classes)
    assert float(contrast(*rows, model().detach(), space)) == pytest.approx(loss)
    fit(
        model,
        rows,
        lambda v, c: contrast(v, c, model(), space),
        passes=1,
        rate=rate,
        order=torch.Generator(),
    )
    inner = (gradient @ w2) * (hidden > 0)
    wanted = [inner @ w1, inner.T @ e, inner.sum(axis=0), gradient.T @ hidden, gradient.sum(axis=0)]
    for old, value, change in zip(start, model.state_dict().values(), wanted, strict=True):
        np.testing.assert_allclose(value.numpy(), old - rate * change, atol=1e-10)


def test_the_margin_is_the_largest_distance_of_two_classes_up_to_tau():
    values = torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 5.0], [0.0, 4.0]])
    classes = torch.tensor([0, 0, 1, 2])
    # The classes' means are (0, 1), (3, 5) and (0, 4).
    assert margin(values, classes, 100.0) == pytest.approx(5.0)
    assert margin(values, classes, 4.0) == 4.0


def test_the_server_trains_on_single_means_and_sends_its_prototypes(tiny):
    options = {**ONE_STEP, "models": "mlp,resnet8"}
    run = after(build(tiny, "fedtgp", options, feature_width=24), 1)
    found = run.baseline.prototypes
    assert torch.equal(found.rows, run.baseline.trainable().detach())
    owners = np.stack([np.bincount(run.federation.examples(c).y, minlength=10) for c in range(4)])
    np.testing.assert_array_equal(found.counts, (owners > 0).sum(axis=0))
    assert 0 <= run.ledger.per_client("up") - 4 * (10 * 24 + 10) < 100
