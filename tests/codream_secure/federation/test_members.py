"""Who takes part in a run, and what each holds."""

import hashlib

import numpy as np
import pytest
import torch

from codream_secure.config.rules import resolve
from codream_secure.errors import UserError
from codream_secure.federation.members import Federation

CPU = torch.device("cpu")


@pytest.fixture
def federation(tiny, data):
    """Return a function that builds the federation of some settings."""

    def build(options=None, keep=None, **how):
        return Federation(resolve(tiny(**(options or {}))), data, CPU, keep, **how)

    return build


def rows_of(found):
    return np.concatenate(list(found.all_parts.values()))


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.3", "shards:3"])
def test_no_example_has_two_owners_and_validation_is_not_trained_on(federation, data, partition):
    found = federation({"partition": partition, "validation": 0.25})
    rows = rows_of(found)
    assert len(set(rows.tolist())) == len(rows)
    everything = {x.tobytes() for x in found.scale.scale(torch.from_numpy(data.x_train)).numpy()}
    for client, member in found.members.items():
        own = {x.numpy().tobytes() for x in found.examples(client).x}
        set_aside = {x.numpy().tobytes() for x in member.validation.x}
        assert own | set_aside <= everything
        assert len(found.examples(client).y) + len(member.validation.y) == len(
            found.all_parts[client]
        )


def test_a_client_and_its_twin_start_from_the_same_weights_and_others_do_not(federation):
    found = federation({"models": "mlp"})
    mine, twins = found.client_models(), found.twin_models()
    for client in found.roster:
        first, second = mine[client].state_dict(), twins[client].state_dict()
        assert mine[client] is not twins[client]
        assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in mine.values()]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


def test_a_twin_takes_as_many_steps_as_its_client(federation):
    member = federation().members[0]
    for _ in range(3):
        member.client.learner.local_step()
    member.train_twin()
    assert member.twin.local_steps == 3


def test_examples_that_are_left_out_reach_nobody(federation, data):
    keep = np.arange(len(data.y_train)) % 2 == 0
    whole, half = federation({"validation": 0.0}), federation({"validation": 0.0}, keep)
    assert all((whole.all_parts[c] == half.all_parts[c]).all() for c in whole.roster)
    for client, rows in half.all_parts.items():
        assert half.examples(client).y.tolist() == data.y_train[rows[keep[rows]]].tolist()


def test_a_site_alone_holds_what_the_simulation_deals_to_it(federation):
    whole, alone = federation(), federation(only=2)
    assert list(alone.members) == [2]
    assert alone.roster == whole.roster
    assert torch.equal(alone.examples(2).x, whole.examples(2).x)
    assert torch.equal(alone.members[2].validation.y, whole.members[2].validation.y)
    first, second = (f.client_models()[2].state_dict() for f in (whole, alone))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_site_with_data_of_its_own_counts_as_an_even_share(federation, data):
    found = federation({"samples_per_client": 50}, only=1, whole=True)
    assert found.share == 50
    assert len(found.all_parts[1]) == len(data.y_train)
    with pytest.raises(UserError, match="--samples-per-client"):
        federation(only=1, whole=True)


def test_the_digest_names_the_data(federation, data):
    digest = federation().data_digest()
    assert digest == federation({"partition": "shards:3", "seed": 5}).data_digest()
    whole = hashlib.sha256(repr((data.spec, data.scaling)).encode())
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        whole.update(repr((array.shape, array.dtype.str)).encode())
        whole.update(array.tobytes())
    assert digest == whole.hexdigest()
