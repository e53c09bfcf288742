import numpy as np
import pytest
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

from codream_secure.errors import UserError
from codream_secure.models.tensors import tensors_of


def test_a_round_is_that_of_the_paper(tiny):
    alpha, beta, rate = 0.7, 0.4, 0.1
    settings = {**SLOW_SGD, "fml_private": alpha, "fml_common": beta, "messenger": "linear"}
    run = build(tiny, "fml", ONE_STEP, **settings)
    common = linear_of(run.baseline.messenger.model)
    private = {c: linear_of(m) for c, m in run.baseline.client_models().items()}
    after(run, 1)
    trained = []
    for client, own in private.items():
        x, y = batch_of(run, client)
        p, q = softmax(x @ own[0].T + own[1]), softmax(x @ common[0].T + common[1])
        labels, size = one_hot(y), len(y)
        of_own = (alpha * (p - labels) + (1 - alpha) * (p - q)) / size
        of_common = (beta * (q - labels) + (1 - beta) * (q - p)) / size
        found = linear_of(run.baseline.client_models()[client])
        for value, wanted in zip(found, stepped(*own, x, of_own, rate), strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-6)
        trained.append(stepped(*common, x, of_common, rate))
    for value, parts in zip(
        linear_of(run.baseline.server_model()), zip(*trained, strict=True), strict=True
    ):
        np.testing.assert_allclose(value, np.mean(parts, axis=0), atol=1e-6)


def test_masks_change_nothing_but_bytes(tiny):
    assert_masks_change_nothing(tiny, "fml", {"models": "mlp,linear"}, messenger="linear")


def test_both_models_count_as_work_and_the_common_one_alone_travels(tiny):
    run = after(build(tiny, "fml", {"models": "mlp"}, messenger="linear"), 1)
    party = run.baseline.parties.clients[0]
    assert party.work.trained == 2 * party.steps * party.batches.size
    numbers = sum(v.numel() for v in tensors_of(run.baseline.server_model()).values())
    assert 0 <= run.ledger.per_client("up") - 4 * numbers < 100


def test_a_messenger_larger_than_the_models_is_told(tiny):
    with pytest.warns(UserWarning, match=r"--messenger mlp is larger .* 19,240 bytes each way"):
        build(tiny, "fml", messenger="mlp")
    with pytest.raises(UserError, match="unknown model 'lenet'"):
        build(tiny, "fml", messenger="lenet")
