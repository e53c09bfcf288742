"""The command `audit privacy` runs the audits, prints what they find, and keeps it."""

import json

import pytest
from trainers import planted

from codream_secure.audit import everything
from codream_secure.audit.one_run import audit_one_run


def test_the_command_says_what_it_found_and_keeps_it(run, tmp_path):
    code, out, _ = run("audit", "privacy", "--only", "one-run", "--json", "--out", "found")
    result = json.loads(out)
    assert code == 0
    assert result["violated"] == []
    assert [row["part"] for row in result["findings"]] == ["one-run"] * 3
    assert json.loads((tmp_path / "found/audit.json").read_text()) == result


def test_a_refuted_claim_ends_with_code_1(run, monkeypatch):
    fault = planted(noise_multiplier=lambda _: 1e-6)
    monkeypatch.setattr(everything, "audit_one_run", lambda *a: audit_one_run(*a, make=fault))
    monkeypatch.setattr(everything, "ONE_RUN_BUDGETS", (1.0,))
    code, out, _ = run("audit", "privacy", "--only", "one-run")
    assert code == 1
    assert "REFUTED" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "is not the folder of a run"),
        (("nowhere", "--clients", "5"), "cannot be used with RUN_DIR"),
        (("--dp-eps", "-1"), "--dp-eps must be from 0.000001 to 1000"),
    ],
)
def test_bad_input_is_one_line(run, arguments, told):
    code, _, err = run("audit", "privacy", "--only", "sums", *arguments)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
