import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_secure.data import label_histogram, partition, split_validation
from codream_secure.errors import UserError

LABELS = np.random.default_rng(1).integers(0, 10, 1397)

label_lists = st.lists(st.integers(0, 6), min_size=2, max_size=80)
alphas = st.sampled_from(["1e-300", "1e-4", "0.1", "0.5", "1", "100", "1e308"])
schemes = st.just("iid") | alphas.map(lambda alpha: f"dirichlet:{alpha}")


@settings(max_examples=100, deadline=None)
@given(label_lists, st.data(), schemes, st.integers(0, 2**63))
def test_every_example_goes_to_one_client_and_sizes_are_equal_up_to_one(drawn, data, scheme, seed):
    labels = np.array(drawn)
    clients = data.draw(st.integers(1, len(labels)))
    parts = partition(labels, clients, scheme, seed, min_examples=1)
    sizes = [len(part) for part in parts]
    assert len(parts) == clients
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(part.dtype == np.int64 for part in parts)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet:0.5"])
def test_the_seed_decides(scheme):
    first, again, other = (partition(LABELS, 10, scheme, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def mean_share_of_commonest_class(scheme):
    parts = partition(LABELS, 10, scheme, 0)
    return np.mean([label_histogram(LABELS[part], 10).max() / len(part) for part in parts])


def test_a_smaller_alpha_makes_clients_differ_more():
    shares = [mean_share_of_commonest_class(f"dirichlet:{a}") for a in (0.01, 0.1, 1, 1e6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6
    assert shares[-1] < 0.2
    assert mean_share_of_commonest_class("iid") < 0.2


def test_no_client_is_favoured_when_classes_run_out():
    """Over many seeds, the last client is as near to its own wish as the first."""
    labels = np.arange(400) % 10
    top = np.zeros(8)
    for seed in range(150):
        parts = partition(labels, 8, "dirichlet:0.1", seed)
        top += [label_histogram(labels[part], 10).max() for part in parts]
    assert top.max() / top.min() < 1.15


@pytest.mark.parametrize(
    "scheme",
    ["", "IID", "iid:1", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:nan",
     "dirichlet:inf", "dirichlet:x", "dirichlet:1:2", "labels"],
)  # fmt: skip
def test_bad_schemes_are_refused(scheme):
    with pytest.raises(UserError, match="dirichlet"):
        partition(LABELS, 10, scheme, 0)


@pytest.mark.parametrize(("clients", "least"), [(0, 1), (-1, 1), (1398, 0), (1398, 1), (699, 2)])
def test_more_clients_than_examples_allow_are_refused(clients, least):
    with pytest.raises(UserError, match="clients"):
        partition(LABELS, clients, "iid", 0, min_examples=least)


def test_two_examples_for_each_client_are_enough_by_default():
    assert min(len(part) for part in partition(LABELS, 698, "dirichlet:0.5", 0)) == 2


@settings(max_examples=100, deadline=None)
@given(label_lists, st.floats(0.001, 0.999), st.integers(0, 2**63))
def test_validation_takes_its_share_of_every_class(drawn, fraction, seed):
    labels = np.array([9, 9, *drawn])
    indices = np.arange(2, len(labels))
    train, validation = split_validation(indices, labels, fraction, seed)
    assert sorted([*train, *validation]) == indices.tolist()
    assert len(train) >= 1
    assert len(validation) == np.clip(round(fraction * len(indices)), 1, len(indices) - 1)
    share = len(validation) / len(indices)
    taken = label_histogram(labels[validation], 10)
    assert (abs(taken - share * label_histogram(labels[indices], 10)) < 1 + 1e-9).all()
    again = split_validation(indices, labels, fraction, seed)
    assert np.array_equal(again[0], train)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_bad_fractions_are_refused(fraction):
    with pytest.raises(UserError, match="fraction"):
        split_validation(np.arange(5), LABELS, fraction, 0)


def test_one_example_cannot_be_split():
    with pytest.raises(UserError, match="fewer clients"):
        split_validation(np.arange(1), LABELS, 0.5, 0)


def test_the_histogram_has_a_place_for_absent_classes():
    assert label_histogram(np.array([0, 2, 2]), 4).tolist() == [1, 0, 2, 0]
    assert label_histogram(np.array([], dtype=np.int64), 2).tolist() == [0, 0]
