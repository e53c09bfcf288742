"""Deal scikit-learn's digits to three hospitals and a public part: four .npz files, no download.

What is different from one hospital to the next: how many examples it has, and of which classes.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

SEED = 0
PUBLIC = 400
TEST_SHARE = 0.2
# Hospital: how many of the examples of each class that are not public it gets.
SHARES = {
    "north": [0.6, 0.6, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1],
    "south": [0.1, 0.1, 0.1, 0.1, 0.3, 0.3, 0.6, 0.6, 0.6, 0.6],
    "harbour": [0.3, 0.3, 0.3, 0.3, 0.4, 0.4, 0.3, 0.3, 0.3, 0.0],
}


def main() -> None:
    """Write public.npz and a file a hospital into the current folder."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    images = (digits.images[order] * 15.9).astype(np.uint8)
    labels = digits.target[order].astype(np.int64)
    write("public", images[:PUBLIC], labels[:PUBLIC], test_share=0.75)
    images, labels = images[PUBLIC:], labels[PUBLIC:]
    used = dict.fromkeys(range(10), 0)
    for name, shares in SHARES.items():
        rows = []
        for label, share in enumerate(shares):
            members = np.flatnonzero(labels == label)
            end = used[label] + round(share * len(members))
            rows.append(members[used[label] : end])
            used[label] = end
        mine = np.sort(np.concatenate(rows))
        write(name, images[mine], labels[mine], test_share=TEST_SHARE)


def write(name: str, images: np.ndarray, labels: np.ndarray, *, test_share: float) -> None:
    """Write one file; the last part of the examples is its test part."""
    train = round(len(labels) * (1 - test_share))
    np.savez(
        Path(f"{name}.npz"),
        x_train=images[:train],
        y_train=labels[:train],
        x_test=images[train:],
        y_test=labels[train:],
    )
    print(f"{name}.npz: {train} training and {len(labels) - train} test images")  # noqa: T201


if __name__ == "__main__":
    main()
