"""Digits for sites, and machines to run them on."""

import pytest
from machines import Machines

from codream_secure.data.datasets import load_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture
def machines(tmp_path, data):
    return lambda **options: Machines(tmp_path / "machines", data, **options)
