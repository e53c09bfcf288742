"""A group of clients: its buffer, its streams of randomness, and its state."""

import pytest
import torch

from codream_secure.federation.simulation import Simulation


def pixels(group):
    return [dreams.numpy().tobytes() for dreams, _ in group.buffer.state()]


@pytest.fixture
def simulation(tiny):
    """A run of three dream batches a round that has not begun."""
    return Simulation(tiny(dream_batches=3, samples_per_client=30, buffer=4, rounds=2))


def synthesise(simulation, number, advance=lambda: None):
    (group,) = simulation.groups
    group.begin_round(number)
    return group.synthesise(number, None, advance)


def test_a_rounds_batches_are_new_and_the_oldest_leave_the_buffer(simulation):
    (group,) = simulation.groups
    steps = []
    first = synthesise(simulation, 1, lambda: steps.append(1))
    assert len(steps) == 3 * (2 + 1)  # two dream steps and the labels of three batches
    assert len({batch.pixels.tobytes() for batch in first}) == 3
    before = pixels(group)
    assert len(before) == 3
    synthesise(simulation, 2)
    after = pixels(group)
    assert len(after) == 4  # the capacity
    assert after[0] == before[2]
    assert len(set(after)) == 4


def test_targets_are_the_mean_of_what_members_predict_at_the_pixels(simulation):
    (group,) = simulation.groups
    batch = synthesise(simulation, 1)[0]
    scaled = group.scale.from_pixels(batch.pixels)
    temperature = simulation.config.learning.kd_temperature
    members = simulation.federation.members.values()
    told = [member.client.teacher(scaled) / temperature for member in members]
    mean = torch.stack([logits.softmax(dim=1) for logits in told]).mean(dim=0)
    step = 1 / 255  # eight bits a label
    assert torch.allclose(batch.targets, mean, atol=step)


def test_a_restored_group_goes_on_with_the_same_dreams(simulation, tiny):
    synthesise(simulation, 1)
    (group,) = simulation.groups
    again = Simulation(simulation.config)
    (other,) = again.groups
    other.restore(group.state())
    assert pixels(other) == pixels(group)
    assert other.rolled_back == group.rolled_back
    assert other.aggregator.steps == group.aggregator.steps
    mine, its = synthesise(simulation, 2), synthesise(again, 2)
    assert [b.pixels.tobytes() for b in mine] == [b.pixels.tobytes() for b in its]


def test_a_state_of_another_group_is_refused(simulation, tiny):
    other = Simulation(tiny(method="codream-fast", samples_per_client=30))
    with pytest.raises(ValueError, match=r"\w"):
        other.groups[0].restore(simulation.groups[0].state())
