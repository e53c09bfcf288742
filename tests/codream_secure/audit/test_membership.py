"""Membership inference tells members as well as they differ."""

import numpy as np
import pytest

from codream_secure.audit import membership
from codream_secure.data.datasets import load_dataset


@pytest.mark.parametrize(("gap", "low", "high"), [(0.0, 0.45, 0.55), (2.0, 0.85, 0.97)])
def test_lira_tells_members_as_well_as_they_differ(gap, low, high):
    draw = np.random.default_rng(1)
    members = (draw.random((8, 400)) < 0.5).astype(float)
    hardness = draw.normal(size=400)
    scores = hardness + draw.normal(size=(8, 400)) + gap * members
    found = membership._attacked("client model", scores, members)
    assert low < found.auc < high
    assert found.interval[0] < found.auc < found.interval[1]


def test_shadows_leave_out_half_of_every_client_and_are_kept(tiny, tmp_path, monkeypatch):
    data = load_dataset("digits", tmp_path)
    runs = []
    real = membership._shadow
    monkeypatch.setattr(membership, "_shadow", lambda *a: (runs.append(a[2]), real(*a))[1])
    config = tiny(samples_per_client=40)
    found = membership.audit_membership(config, data, 4, tmp_path / "kept")
    assert [one.victim for one in found] == list(membership.VICTIMS)
    assert all(one.guesses > 200 for one in found)
    assert runs == [0, 1, 2, 3]
    again = membership.audit_membership(config, data, 4, tmp_path / "kept")
    assert again == found
    assert len(runs) == 4
    (first,) = (tmp_path / "kept").glob("shadow-0-*.npz")
    with np.load(first) as stored:
        assert 0.4 < stored["members"].mean() < 0.6
        assert np.isfinite(stored["client model"]).sum() == 160
    # Runs of other settings in the same folder are not taken for these.
    others = tiny(samples_per_client=40, seed=1)
    assert membership._digest(others, data) != membership._digest(config, data)
