"""Clients dream together, or each alone; the weight cap tells nobody's number of examples."""

import torch

from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.dreaming.group import WEIGHT_CAP_SHARES
from codream_secure.federation.groups import dream_groups
from codream_secure.federation.simulation import Simulation


def test_together_all_clients_share_one_group_and_its_aggregator(tiny):
    simulation = Simulation(tiny(samples_per_client=30))
    (group,) = dream_groups(simulation.federation, simulation.aggregator)
    assert group.aggregator is simulation.aggregator


def test_alone_every_client_learns_from_dreams_of_its_own(tiny):
    config = tiny(samples_per_client=30, collaboration=False, dreams=4)
    simulation = Simulation(config)
    groups = dream_groups(simulation.federation, simulation.aggregator)
    assert len(groups) == 4
    batches = []
    for client, group in enumerate(groups):
        assert isinstance(group.aggregator, PlainAggregator)
        group.begin_round(1)
        (batch,) = group.synthesise(1, None, lambda: None)
        teacher = simulation.federation.members[client].client.teacher
        logits = teacher(group.scale.from_pixels(batch.pixels))
        wanted = (logits / config.learning.kd_temperature).softmax(dim=1)
        assert torch.allclose(batch.targets, wanted, atol=1 / 255)
        batches.append(batch.pixels.tobytes())
    assert len(set(batches)) == 4
    assert simulation.ledger.per_client("up") == 0


def test_the_weight_cap_follows_from_public_numbers(tiny):
    def cap(**options):
        options |= {"samples_per_client": 30}
        simulation = Simulation(tiny(**options))
        (group,) = simulation.groups
        return group.weight_cap, simulation.federation.share

    assert cap()[0] == 0
    found, share = cap(weights="examples", partition="dirichlet-labels:1")
    assert found == WEIGHT_CAP_SHARES * share
    assert cap(weights="examples", weight_cap=7)[0] == 7
