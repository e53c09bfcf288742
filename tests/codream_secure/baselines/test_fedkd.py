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

from codream_secure.baselines.fedkd import factors, rebuilt


def truncated(matrix, energy):
    """Return the least singular values that hold a share of the squares, by numpy."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    rank = next(k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() >= energy * (s**2).sum())
    smaller = rank * (sum(matrix.shape) + 1) < matrix.size
    return (u[:, :rank] * s[:rank]) @ v[:rank] if smaller else matrix


def test_a_round_is_that_of_the_paper(tiny):
    energy = 0.6
    settings = {**SLOW_SGD, "messenger": "linear", "kd_energy_first": energy}
    run = build(tiny, "fedkd", ONE_STEP, **settings)
    mentee = linear_of(run.baseline.messenger.model)
    before = {
        c: (linear_of(m), linear_of(run.baseline._maps[c]))
        for c, m in run.baseline.client_models().items()
    }
    after(run, 1)
    changes = []
    for client, (mentor, (w, offset)) in before.items():
        x, y = batch_of(run, client)
        labels, size = one_hot(y), len(y)
        p, q = (softmax(x @ m[0].T + m[1]) for m in (mentor, mentee))
        errors = -np.log(p[labels == 1]).mean() - np.log(q[labels == 1]).mean()
        # Both models' hidden features are the pixels, which do not learn.
        distance = 2 * 2 * (x @ w.T + offset - x) / x.size / errors
        pairs = [
            (run.baseline.client_models()[client], mentor, (p - labels + (p - q) / errors) / size),
            (run.baseline._maps[client], (w, offset), distance),
        ]
        for model, old, gradient in pairs:
            for value, number in zip(
                linear_of(model), stepped(*old, x, gradient, 0.1), strict=True
            ):
                np.testing.assert_allclose(value, number, atol=1e-6)
        moved = stepped(*mentee, x, (q - labels + (q - p) / errors) / size, 0.1)
        change = moved[0] - mentee[0]
        changes.append((truncated(change, energy), moved[1] - mentee[1]))
    mean = [np.mean(parts, axis=0) for parts in zip(*changes, strict=True)]
    weight, bias = linear_of(run.baseline.server_model())
    np.testing.assert_allclose(weight, mentee[0] + truncated(mean[0], energy), atol=1e-6)
    np.testing.assert_allclose(bias, mentee[1] + mean[1], atol=1e-6)


def test_masks_change_nothing_but_bytes(tiny):
    assert_masks_change_nothing(tiny, "fedkd", {"models": "mlp,linear"}, messenger="linear")


def test_factors_keep_the_least_rank_with_enough_energy():
    left, right = torch.eye(20)[:, :3], torch.eye(30)[:3]
    matrix = (left * torch.tensor([3.0, 2.0, 1.0])) @ right
    # The squares are 9, 4 and 1 of 14.
    for energy, rank in ((0.5, 1), (0.9, 2), (0.95, 3), (1.0, 3)):
        sent = factors({"w": matrix}, energy)
        assert sent["w:s"].shape == (rank,)
        kept = torch.tensor([3.0, 2.0, 1.0]) * (torch.arange(3) < rank)
        assert torch.allclose(rebuilt(sent, {"w": matrix})["w"], (left * kept) @ right, atol=1e-5)


@pytest.mark.parametrize("value", [torch.eye(8), torch.zeros(8, 8), torch.ones(5)])
def test_what_factors_would_not_shorten_travels_as_it_is(value):
    assert torch.equal(factors({"w": value}, 0.95)["w"], value)


def test_a_kernel_is_a_matrix_with_a_row_for_each_output():
    kernel = torch.randn(16, 1) @ torch.randn(1, 9 * 8)
    sent = factors({"k": kernel.reshape(16, 8, 3, 3)}, 0.95)
    assert sent["k:u"].shape == (16, 1)
    assert sent["k:v"].shape == (1, 72)
    back = rebuilt(sent, {"k": kernel.reshape(16, 8, 3, 3)})["k"]
    assert torch.allclose(back.flatten(1), kernel, atol=1e-5)


def test_fewer_singular_values_are_fewer_bytes(tiny):
    sent = [
        after(
            build(tiny, "fedkd", {"models": "mlp"}, messenger="mlp", kd_energy_first=energy), 1
        ).ledger.per_client("up")
        for energy in (0.3, 1.0)
    ]
    assert sent[0] < 0.7 * sent[1]
