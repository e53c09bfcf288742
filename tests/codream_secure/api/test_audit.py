"""`audit_privacy` runs the audit of the command line on data in memory too."""

import json

import numpy as np
import pytest

import codream_secure as cs
from codream_secure.audit import everything
from codream_secure.audit.findings import Finding


def finding(*, holds):
    figures = {"epsilon": 9.0}
    return Finding(part="steps", what="one", found="9", claimed="8", holds=holds, figures=figures)


@pytest.fixture
def asked(monkeypatch):
    """Replace the attacks, which take minutes, and keep what they were asked for."""
    seen = []

    def attacks(config, dataset, **more):
        seen.append((config, dataset, more))
        more["start"]("steps", 2)
        more["advance"]()
        return [finding(holds=False)]

    monkeypatch.setattr(everything, "run", attacks)
    return seen


def test_data_in_memory_is_attacked_and_the_result_written(asked, tmp_path):
    rng = np.random.default_rng(0)
    part = rng.random((40, 5, 5), np.float32), np.arange(40) % 2
    data = cs.Data.from_arrays(part, part)
    steps = []
    found = cs.audit_privacy(
        data=data,
        clients=4,
        dp_eps=2.0,
        only=["steps"],
        shadows=4,
        out=tmp_path / "audit",
        on_step=lambda *told: steps.append(told),
    )
    ((config, dataset, more),) = asked
    assert (config.data.clients, config.privacy.dp_eps) == (4, 2.0)
    assert dataset is data.dataset
    assert (more["parts"], more["shadows"]) == (["steps"], 4)
    assert found.violated == ["steps: one"]
    assert steps == [("steps", 0, 2), ("steps", 1, 2)]
    assert json.loads((tmp_path / "audit/audit.json").read_text())["violated"] == found.violated


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"only": ["stpes"]}, "there is no 'stpes'; sums, steps, one-run"),
        ({"shadows": 1}, "shadows must be"),
        ({"run": "nowhere"}, "nowhere is not the folder of a run"),
        ({"run": "nowhere", "clients": 3}, "--clients cannot be used with RUN_DIR"),
        ({"dp_eps": -1.0}, "--dp-eps must be"),
    ],
)
def test_bad_arguments_are_one_line(asked, arguments, told):
    with pytest.raises(cs.UserError, match=told):
        cs.audit_privacy(**arguments)
    assert not asked
