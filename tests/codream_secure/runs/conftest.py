"""A small dataset, so that a run takes less than a second."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Return a file of 80 training and 20 test images of 4 classes."""
    path = tmp_path_factory.mktemp("arrays") / "data.npz"
    draw = np.random.default_rng(0)
    images = {
        f"x_{p}": draw.integers(0, 256, (k, 8, 8), dtype=np.uint8)
        for p, k in (("train", 80), ("test", 20))
    }
    np.savez(path, **images, y_train=np.arange(80) % 4, y_test=np.arange(20) % 4)
    return str(path)
