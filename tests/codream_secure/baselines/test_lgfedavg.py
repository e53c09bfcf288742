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
    linear_of,
    one_hot,
    softmax,
    stepped,
)

from codream_secure.baselines.base import last_layer
from codream_secure.errors import UserError
from codream_secure.models.tensors import tensors_of


def test_a_round_trains_features_and_averages_classifiers(tiny):
    run = build(tiny, "lg-fedavg", {**ONE_STEP, "models": "mlp"}, **SLOW_SGD)
    before = {
        c: [v.double().numpy() for v in tensors_of(m).values()]
        for c, m in run.baseline.client_models().items()
    }
    after(run, 1)
    heads = []
    for client, (w1, b1, w2, b2) in before.items():
        x, y = batch_of(run, client)
        hidden = np.tanh(x @ w1.T + b1)
        gradient = (softmax(hidden @ w2.T + b2) - one_hot(y)) / len(y)
        heads.append(stepped(w2, b2, hidden, gradient, 0.1))
        inner = (gradient @ w2) * (1 - hidden**2)
        found = [v.numpy() for v in tensors_of(run.baseline.client_models()[client]).values()]
        for value, wanted in zip(found[:2], stepped(w1, b1, x, inner, 0.1), strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-6)
    wanted = [np.mean(parts, axis=0) for parts in zip(*heads, strict=True)]
    for model in run.baseline.client_models().values():
        for value, mean in zip(linear_of(model), wanted, strict=True):
            np.testing.assert_allclose(value, mean, atol=1e-6)


def test_masks_change_nothing_but_bytes(tiny):
    assert_masks_change_nothing(tiny, "lg-fedavg", {"models": "mlp,resnet8", "width": 4})


def test_models_of_any_width_share_a_classifier_and_send_it_alone(tiny):
    run = build(tiny, "lg-fedavg", {"models": "mlp,resnet8,lenet5"}, feature_width=24)
    heads = [last_layer(m) for m in run.baseline.client_models().values()]
    assert {head.weight.shape for head in heads} == {(10, 24)}
    assert all(torch.equal(head.weight, heads[0].weight) for head in heads)
    after(run, 1)
    assert all(torch.equal(head.weight, heads[0].weight) for head in heads)
    assert 0 <= run.ledger.per_client("up") - 4 * (10 * 24 + 10) < 100


def test_a_model_without_features_is_refused(tiny):
    with pytest.raises(UserError, match="linear has no features but the pixels"):
        build(tiny, "lg-fedavg", {"models": "mlp,linear"})
