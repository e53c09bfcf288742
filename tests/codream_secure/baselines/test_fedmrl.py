import numpy as np
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


def test_a_round_is_that_of_the_paper(tiny):
    run = build(tiny, "fedmrl", ONE_STEP, **SLOW_SGD, messenger="linear", mrl_width=64)
    common = linear_of(run.baseline.messenger.model)
    before = {
        c: (linear_of(m.private), linear_of(m.projector))
        for c, m in run.baseline.client_models().items()
    }
    after(run, 1)
    trained = []
    for client, (own, (a, offset)) in before.items():
        x, y = batch_of(run, client)
        twice = np.concatenate([x, x], axis=1)
        joined = twice @ a.T + offset
        large = (softmax(joined @ own[0].T + own[1]) - one_hot(y)) / len(y)
        small = (softmax(joined @ common[0].T + common[1]) - one_hot(y)) / len(y)
        fused = run.baseline.client_models()[client]
        of_projector = large @ own[0] + small @ common[0]
        pairs = [
            (linear_of(fused.private), stepped(*own, joined, large, 0.1)),
            (linear_of(fused.projector), stepped(a, offset, twice, of_projector, 0.1)),
        ]
        for found, wanted in pairs:
            for value, number in zip(found, wanted, strict=True):
                np.testing.assert_allclose(value, number, atol=1e-6)
        trained.append(stepped(*common, joined, small, 0.1))
    mean = [np.mean(parts, axis=0) for parts in zip(*trained, strict=True)]
    for value, number in zip(linear_of(run.baseline.server_model()), mean, strict=True):
        np.testing.assert_allclose(value, number, atol=1e-6)


def test_masks_change_nothing_but_bytes(tiny):
    options = {"models": "mlp,linear"}
    assert_masks_change_nothing(tiny, "fedmrl", options, messenger="linear")


def test_clients_predict_with_the_projector_that_they_trained_and_the_new_common_model(tiny):
    run = build(tiny, "fedmrl", {"models": "mlp,resnet8"}, messenger="mlp", mrl_width=8)
    start = [m.projector.weight.clone() for m in run.baseline.client_models().values()]
    after(run, 1)
    server = run.baseline.server_model()
    assert last_layer(server).in_features == 8
    for weight, fused in zip(start, run.baseline.client_models().values(), strict=True):
        assert not torch.equal(fused.projector.weight, weight)
        assert torch.equal(last_layer(fused.common).weight, last_layer(server).weight)
