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


def is_a_partition(parts, total):
    """Every position at most once, and from the data."""
    positions = np.concatenate(parts)
    assert len(set(positions.tolist())) == len(positions)
    assert positions.min() >= 0
    assert positions.max() < total
    assert all(part.dtype == np.int64 for part in parts)


@settings(max_examples=100, deadline=None)
@given(label_lists, st.data(), schemes, st.integers(0, 2**63))
def test_samples_per_client_are_what_every_client_gets(drawn, data, scheme, seed):
    labels = np.array(drawn)
    clients = data.draw(st.integers(1, len(labels)))
    samples = data.draw(st.integers(1, len(labels) // clients))
    parts = partition(labels, clients, scheme, seed, samples_per_client=samples, min_examples=1)
    assert [len(part) for part in parts] == [samples] * clients
    is_a_partition(parts, len(labels))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from(["0.1", "0.5", "1", "1e308"]),
    st.integers(1, 12),
    st.none() | st.integers(15, 115),
    st.integers(0, 2**63),
)
def test_dirichlet_labels_deals_everything_and_enough(clients, alpha, least, samples, seed):
    scheme = f"dirichlet-labels:{alpha}"
    try:
        parts = partition(
            LABELS, clients, scheme, seed, samples_per_client=samples, min_examples=least
        )
    except UserError as error:
        assert "use a larger ALPHA" in str(error)  # noqa: PT017 - it may fail or not
        assert float(alpha) <= 1
        return
    is_a_partition(parts, len(LABELS))
    assert sum(map(len, parts)) == (len(LABELS) if samples is None else samples * clients)
    assert min(map(len, parts)) >= least


def test_dirichlet_labels_shares_every_class_by_proportions_of_its_own():
    """Sizes differ, and a larger ALPHA makes every client's share of a class more alike."""
    spread = {}
    for alpha in (0.3, 3, 1e6):
        parts = partition(LABELS, 8, f"dirichlet-labels:{alpha}", 0)
        counts = np.array([label_histogram(LABELS[part], 10) for part in parts])
        spread[alpha] = (counts / counts.sum(axis=0)).std(axis=0).mean()
        assert (counts.sum(axis=0) == label_histogram(LABELS, 10)).all()
        assert len({len(part) for part in parts}) > 1
    assert spread[0.3] > 2 * spread[3] > 20 * spread[1e6]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 2**63))
def test_shards_give_every_client_so_many_classes(data, seed):
    classes = data.draw(st.integers(2, 12))
    wanted = data.draw(st.integers(1, classes))
    clients = data.draw(st.integers(-(-classes // wanted), 3 * classes))
    holders = clients * wanted / classes
    sizes = data.draw(
        st.lists(st.integers(int(2 * holders) + 2, 90), min_size=classes, max_size=classes)
    )
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), sizes))
    parts = partition(labels, clients, f"shards:{wanted}", seed)
    is_a_partition(parts, len(labels))
    assert sum(map(len, parts)) == len(labels)
    counts = np.array([label_histogram(labels[part], classes) for part in parts])
    assert ((counts > 0).sum(axis=1) == wanted).all()
    held = (counts > 0).sum(axis=0)
    assert held.min() >= 1
    assert held.max() - held.min() <= 1
    for column in counts.T:
        shards = column[column > 0]
        assert shards.max() - shards.min() <= 1

    samples = data.draw(st.integers(max(wanted, 2), max(wanted, 2, int(counts.sum(1).min()))))
    cut = partition(labels, clients, f"shards:{wanted}", seed, samples_per_client=samples)
    assert {len(part) for part in cut} == {samples}
    is_a_partition(cut, len(labels))
    fewer = np.array([label_histogram(labels[part], classes) for part in cut])
    assert ((fewer > 0) == (counts > 0)).all()
    # As equal as the shards allow: a class that has fewer than another one is used up.
    for whole, taken in zip(counts, fewer, strict=True):
        short = (taken > 0) & (taken < taken.max() - 1)
        assert (taken[short] == whole[short]).all()


def test_shards_differ_between_clients():
    """Not the same groups of classes again and again."""
    parts = partition(LABELS, 20, "shards:2", 0)
    assert len({tuple(np.unique(LABELS[part])) for part in parts}) > 10


TOO_FEW = [
    ("iid", 10, {"samples_per_client": 140}, "use at most 139 samples per client"),
    ("iid", 10, {"samples_per_client": 3, "min_examples": 4}, "every client needs at least 4"),
    ("shards:11", 10, {}, "the data has 10 classes"),
    ("shards:2", 4, {}, "covers 8 of 10 classes; use at least shards:3 or more clients"),
    ("shards:5", 600, {"min_examples": 1}, "use fewer clients or classes per client"),
    ("shards:1", 10, {"samples_per_client": 139}, "leaves a client with"),
    ("shards:3", 10, {"samples_per_client": 2}, "at least 3 samples per client"),
    ("dirichlet-labels:0.01", 100, {}, "use a larger ALPHA, fewer clients"),
]


@pytest.mark.parametrize(("scheme", "clients", "options", "says"), TOO_FEW)
def test_too_few_examples_are_one_line(scheme, clients, options, says):
    with pytest.raises(UserError) as caught:
        partition(LABELS, clients, scheme, 0, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"samples_per_client": 40}], ids=["all", "40"])
@pytest.mark.parametrize("scheme", ["iid", "dirichlet:0.5", "dirichlet-labels:0.5", "shards:2"])
def test_the_seed_decides(scheme, options):
    first, again, other = (partition(LABELS, 10, scheme, seed, **options) for seed in (3, 3, 4))
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
     "dirichlet:inf", "dirichlet:x", "dirichlet:1:2", "labels", "dirichlet-labels:0"],
)  # fmt: skip
def test_bad_schemes_are_refused(scheme):
    with pytest.raises(UserError, match="dirichlet"):
        partition(LABELS, 10, scheme, 0)


@pytest.mark.parametrize("number", ["", "0", "-1", "1.5", "x", "²", "2:2"])
def test_shards_take_a_positive_integer(number):
    with pytest.raises(UserError, match="CLASSES_PER_CLIENT"):
        partition(LABELS, 10, f"shards:{number}", 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63))
def test_clients_of_equal_size_get_near_to_the_classes_they_drew(seed):
    """With data to spare, the paper's partition: counts are multinomial around Dir(ALPHA)."""
    labels = np.repeat(np.arange(10), 5000)
    parts = partition(labels, 4, "dirichlet:0.5", seed, samples_per_client=100)
    counts = np.array([label_histogram(labels[part], 10) for part in parts])
    shares = np.random.default_rng(seed).dirichlet(np.full(10, 0.5), size=4)
    deviation = np.abs(counts - 100 * shares)
    assert (deviation <= 6 + 6 * np.sqrt(100 * shares * (1 - shares))).all()


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
