import numpy as np
import torch
from peers import ONE_STEP, SLOW_SGD, after, batch_of, build, linear_of, one_hot, softmax, stepped

from codream_secure.models.tensors import tensors_of
from codream_secure.runtime.seeds import generator

SKEWED = {**ONE_STEP, "partition": "dirichlet:0.3", "models": "mlp"}


def test_the_classifier_learns_from_single_means_and_goes_to_everybody(tiny):
    rate = 0.05
    run = build(tiny, "fedgh", SKEWED, **SLOW_SGD, head_epochs=2, server_rate=rate)
    before = {
        c: [v.double().numpy() for v in tensors_of(m).values()]
        for c, m in run.baseline.client_models().items()
    }
    head = linear_of(run.baseline.head)
    rows, classes = [], []
    for client, (w1, b1, w2, b2) in before.items():
        np.testing.assert_allclose(w2, head[0])
        x, y = batch_of(run, client)
        labels, hidden = one_hot(y), np.tanh(x @ w1.T + b1)
        gradient = (softmax(hidden @ w2.T + b2) - labels) / len(y)
        inner = stepped(w1, b1, x, (gradient @ w2) * (1 - hidden**2), 0.1)
        hidden, counts = np.tanh(x @ inner[0].T + inner[1]), labels.sum(axis=0)
        own = counts > 0
        rows.append((labels.T @ hidden)[own] / counts[own][:, None])
        classes.append(np.flatnonzero(own))
        before[client] = list(inner)
    values, labels = np.concatenate(rows), one_hot(np.concatenate(classes))
    order = generator(run.exchange.seed, "fedgh")
    for _ in range(2):
        for index in torch.randperm(len(values), generator=order).split(10):
            part = values[index.numpy()]
            gradient = (softmax(part @ head[0].T + head[1]) - labels[index.numpy()]) / len(part)
            head = stepped(*head, part, gradient, rate)
    after(run, 1)
    for client, model in run.baseline.client_models().items():
        found = [v.numpy() for v in tensors_of(model).values()]
        for value, number in zip(found, [*before[client], *head], strict=True):
            np.testing.assert_allclose(value, number, atol=1e-5)


def test_classes_travel_dense_and_the_classifier_comes_back(tiny):
    run = after(build(tiny, "fedgh", {"models": "mlp,resnet8"}, feature_width=24), 1)
    assert not run.masked
    assert 0 <= run.ledger.per_client("up") - 4 * (10 * 24 + 10) < 100
    assert 0 <= run.ledger.per_client("down") - 4 * (10 * 24 + 10) < 200
