"""Streams of random numbers: one for each purpose, the same in every process."""

import torch

from codream_secure.runtime.seeds import derive_bytes, derive_seed, generator


def test_seeds_differ_by_every_label_and_do_not_run_into_each_other():
    labels = [("a",), ("b",), ("a", 1), ("a", "1"), ("a", 1, 1), ("a", 11), ("a1",), ("",)]
    seeds = [derive_seed(seed, *one) for seed in (0, 1) for one in labels]
    assert len(set(seeds)) == len(seeds) - 2  # a number and its digits are the same label


def test_a_seed_is_the_same_everywhere():
    assert derive_seed(0, "model", 3) == derive_seed(0, "model", 3)
    assert len(derive_bytes(0, "noise")) == 32


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first = torch.randn(3, generator=generator(7, "dreams", 1))
    assert torch.equal(first, torch.randn(3, generator=generator(7, "dreams", 1)))
    assert torch.equal(before, torch.get_rng_state())
