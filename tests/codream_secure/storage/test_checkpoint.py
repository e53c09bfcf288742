"""The bytes of a run's state."""

import msgspec
import pytest

from codream_secure.federation.simulation import Simulation
from codream_secure.storage.checkpoint import decode, encode


def test_a_checkpoint_does_not_grow_with_dreams_but_for_32_bytes_a_request(tiny):
    simulation = Simulation(tiny(rounds=6, buffer=1, dreams=64))
    sizes = [len(encode(simulation.state(checkpoint_every=1))) for _ in simulation.rounds()]
    assert sizes[-1] - sizes[1] < 4 * 2048
    assert all(len(g.buffer) == 64 for g in simulation.groups)


def test_a_state_survives_its_bytes_and_a_second_encoding_is_the_same(tiny):
    simulation = Simulation(tiny(rounds=1, models="resnet8", width=4))
    list(simulation.rounds())
    data = encode(simulation.state(checkpoint_every=1))
    again = encode(decode(data))
    assert again == data
    with pytest.raises(TypeError, match="cannot be stored"):
        encode(msgspec.structs.replace(decode(data), history=[{"round": object()}]))
