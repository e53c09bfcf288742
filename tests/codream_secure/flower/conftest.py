"""Digits for sites, and machines to run them on.

Flower is imported once with warnings as they are: its own dependencies give some.
"""

import warnings

import pytest
from machines import Machines

from codream_secure.data.datasets import load_dataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import flwr.app
    import flwr.clientapp
    import flwr.serverapp.strategy  # noqa: F401


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset("digits", tmp_path_factory.mktemp("data"))


@pytest.fixture
def machines(tmp_path, data):
    return lambda **options: Machines(tmp_path / "machines", data, **options)
