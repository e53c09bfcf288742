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

from codream_secure.baselines.class_rows import ClassRows
from codream_secure.baselines.fd import others

SKEWED = {**ONE_STEP, "partition": "dirichlet:0.3"}


def test_two_rounds_are_those_of_the_paper(tiny):
    run = build(tiny, "fd", SKEWED, **SLOW_SGD, fd_weight=0.7)
    models = {c: linear_of(m) for c, m in run.baseline.client_models().items()}
    rows, owned = {}, {}
    for client, model in models.items():
        x, y = batch_of(run, client)
        labels = one_hot(y)
        gradient = (softmax(x @ model[0].T + model[1]) - labels) / len(y)
        models[client] = stepped(*model, x, gradient, 0.1)
        p = softmax(x @ models[client][0].T + models[client][1])
        owned[client] = labels.sum(axis=0) > 0
        rows[client] = labels.T @ p / np.maximum(labels.sum(axis=0), 1)[:, None]
    owners = sum(owned.values()).astype(int)
    assert owners.min() <= 1
    after(run, 1)
    found = run.baseline._mean
    np.testing.assert_array_equal(found.counts, owners)
    wanted = sum(rows.values()) / np.maximum(owners, 1)[:, None]
    np.testing.assert_allclose(found.rows, wanted, atol=1e-6)
    for client, model in models.items():
        x, y = batch_of(run, client)
        left = owners - owned[client]
        target = (sum(rows.values()) - rows[client]) / np.maximum(left, 1)[:, None]
        target = (target * (left > 0)[:, None])[y]
        p = softmax(x @ model[0].T + model[1])
        taught = target.sum(axis=1, keepdims=True) * p - target
        models[client] = stepped(*model, x, (p - one_hot(y) + 0.7 * taught) / len(y), 0.1)
    after(run, 1)
    for client, model in models.items():
        pairs = zip(linear_of(run.baseline.client_models()[client]), model, strict=True)
        for value, number in pairs:
            np.testing.assert_allclose(value, number, atol=1e-5)


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.3"])
def test_masks_change_nothing_but_bytes(tiny, partition):
    assert_masks_change_nothing(tiny, "fd", {"models": "mlp,linear", "partition": partition})


def test_sixteen_masked_bits_are_close_to_floats(tiny):
    clear, masked = (after(build(tiny, name, SKEWED), 1) for name in ("fd", "fd-secure"))
    np.testing.assert_array_equal(clear.baseline._mean.counts, masked.baseline._mean.counts)
    np.testing.assert_allclose(clear.baseline._mean.rows, masked.baseline._mean.rows, atol=2e-4)


def test_the_others_mean_leaves_out_what_a_client_sent():
    mean = ClassRows(torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.0, 0.0]]), torch.tensor([3, 1, 0]))
    own = ClassRows(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.0, 0.0]]), torch.tensor([7, 2, 0]))
    found = others(mean, own)
    assert found.counts.tolist() == [2, 0, 0]
    wanted = torch.tensor([[0.3, 0.7], [0.0, 0.0], [0.0, 0.0]])
    assert torch.allclose(found.rows, wanted, atol=1e-6)
    assert others(mean, None) is mean


def test_an_aborted_round_keeps_the_means(tiny):
    run = after(build(tiny, "fd-secure", {"dropout": 0.99}), 1)
    assert run.exchange.aborted == 1
    assert not run.baseline._mean.owned.any()


def test_classes_travel_dense(tiny):
    run = after(build(tiny, "fd", SKEWED), 1)
    assert 0 <= run.ledger.per_client("up") - 4 * (10 * 10 + 10) < 100
    sent = {by["up"] for by in run.ledger.by_client().values()}
    assert len(sent) == 1
