"""Gradients give pictures back unless there is noise."""

import torch

from codream_secure.audit.inversion import audit_inversion, resemblance
from codream_secure.data.spec import InputSpec


def test_gradients_give_pictures_back_unless_there_is_noise():
    draw = torch.Generator().manual_seed(2)
    images = torch.rand((10, 1, 8, 8), generator=draw)
    found = audit_inversion(images, torch.arange(10), InputSpec(1, 8, 8, 10))
    assert [one.leaks for one in found] == [True, False, True, False]
    assert found[0].psnr > 40


def test_a_gradient_that_is_a_picture_is_recognised():
    draw = torch.Generator().manual_seed(3)
    seen, unseen = torch.rand((2, 20, 1, 8, 8), generator=draw)
    (copied,) = resemblance(-3 * seen[:5] + 7, seen, unseen)
    (unrelated,) = resemblance(torch.randn((5, 1, 8, 8), generator=draw), seen, unseen)
    assert copied.leaks
    assert not unrelated.leaks
