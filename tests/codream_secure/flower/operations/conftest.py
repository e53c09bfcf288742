"""Keys of three clients."""

import pytest

from codream_secure.flower.operations.credentials import make_keys


@pytest.fixture
def keys(tmp_path):
    for client in range(3):
        make_keys(client, tmp_path / "keys")
    return tmp_path / "keys"
