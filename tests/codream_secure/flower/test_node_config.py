"""What a SuperNode's configuration says of its site."""

import pytest

from codream_secure.errors import UserError
from codream_secure.flower.node_config import site_settings


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "lacks client="),
        ({"client": 0, "state": "x", "data": "digits", "identity": "none"}, "no signing key"),
        ({"client": 0, "state": "x", "data": "digits", "roster": "none"}, "is no roster"),
        ({"client": 0, "state": "x", "data": "digits", "max-epsilon": 8}, "now epsilon in policy"),
        ({"client": 0, "state": "x", "data": "digits", "rejoin": True}, "now rejoin in policy"),
    ],
)
def test_a_node_configuration_that_cannot_work_is_refused(config, told):
    with pytest.raises(UserError, match=told):
        site_settings(config)


def test_data_of_ones_own_come_from_a_function(tmp_path, monkeypatch):
    (tmp_path / "our_site.py").write_text(
        "from pathlib import Path\n"
        "from codream_secure.data.datasets import load_dataset\n"
        "def data():\n    return load_dataset('digits', Path('data'))\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = {"client": 0, "state": tmp_path / "s", "data": "our_site:data"}
    assert len(site_settings(config).load().y_train) > 1000
    with pytest.raises(UserError, match="returned a int, not a Dataset"):
        site_settings({**config, "data": "our_site:wrong"}).load()
    with pytest.raises(UserError, match="our_site:nothing"):
        site_settings({**config, "data": "our_site:nothing"}).load()
