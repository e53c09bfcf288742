"""Integer sums of gradients: what one example changes, and what they stand for."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_secure.data.spec import InputSpec
from codream_secure.models.build import build_model
from codream_secure.privacy.integer_gradients import GradientGrid, gradient_sum


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(allow_nan=True, width=32), min_size=9, max_size=9), st.integers(0, 6))
def test_one_example_moves_the_gradient_sum_by_at_most_the_bound(numbers, others):
    grid = GradientGrid(9, 0.5)
    draw = torch.Generator().manual_seed(others)
    rest = torch.randn((others, 9), generator=draw)
    added = torch.cat([rest, torch.tensor([numbers], dtype=torch.float32)])
    moved = grid.sum([added[:, :4], added[:, 4:].reshape(-1, 5, 1)]) - grid.sum([rest])
    assert (moved**2).sum() <= grid.l2**2


def test_the_integer_sum_is_the_sum_of_clipped_gradients():
    model = build_model("mlp", InputSpec(1, 8, 8, 10), width=8, norm="group", seed=0)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn((150, 1, 8, 8), generator=draw), torch.arange(150) % 10
    grid = GradientGrid(sum(p.numel() for p in model.parameters()), 0.5)
    found = gradient_sum(model, x, y, grid) / grid.scale
    expected = 0
    for image, label in zip(x, y, strict=True):
        loss = torch.nn.functional.cross_entropy(model(image[None]), label[None])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
        expected = expected + gradient * min(1.0, 0.5 / float(gradient.norm()))
    assert not any(
        hasattr(p, "grad_sample") and p.grad_sample is not None for p in model.parameters()
    )
    # Truncation takes less than one integer an example.
    assert np.abs(found - expected.numpy()).max() < 150 / grid.scale
    error = np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected)
    assert error < 0.1
