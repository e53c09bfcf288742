"""The tables say what summaries and findings hold."""

import io

import pytest
from rich.console import Console
from run_folders import changed, summary_of

from codream_secure.audit.findings import Finding, PrivacyAudit
from codream_secure.data.spec import InputSpec
from codream_secure.report.table import audit_table, sizes_table, summary_table
from codream_secure.runs.sizes_format import ModelSizes, RoundSizes, Shape


def printed(table):
    console = Console(width=200, file=io.StringIO(), markup=False)
    console.print(table)
    return console.file.getvalue()


def summary(**changes):
    told = {"top": 0.9, "sent": 1000, "independent": 0.7, "epsilon": None, "number": 3}
    options = {name: changes.pop(name, value) for name, value in told.items()}
    return changed(summary_of("codream", **options), changes)


def line(text, start):
    (found,) = [row for row in text.splitlines() if start in row]
    return found


def test_a_summary_has_accuracy_bytes_and_who_it_protects():
    text = printed(summary_table(summary()))
    assert "90.0 % ± 2.0 %" in line(text, "CoDream clients")
    assert "70.0 %" in line(text, "independent training")
    assert "1.00 kB up, 2.00 kB down" in line(text, "bytes per client")
    assert "threshold 2 of 2" in line(text, "masked (")


def test_epsilon_stands_with_its_unit():
    text = printed(summary_table(summary(epsilon=4.0)))
    assert "ε = 4.000" in line(text, "differential privacy")
    assert "example" in line(text, "unit")


def test_an_audit_marks_what_is_refuted_and_nothing_where_nothing_was_claimed():
    marks = {"one": True, "two [x]": False, "three": None}
    rows = [
        Finding(part="sums", what=what, found="2", claimed="1", holds=holds, figures={})
        for what, holds in marks.items()
    ]
    text = printed(
        audit_table(
            PrivacyAudit(findings=rows, violated=["two"], config={}, shadows=8, seconds=3.2)
        )
    )
    assert "8 shadows, 3 seconds" in text
    assert "holds" in line(text, " one ")
    assert "REFUTED" in line(text, " two [x] ")
    assert not {"holds", "REFUTED"} & set(line(text, " three ").split())


@pytest.mark.parametrize("known", [1.5, None])
def test_sizes_are_megabytes_both_ways(known):
    row = ModelSizes(
        model="vgg11 (ImageNet)",
        numbers=2_500_000,
        bytes={"fedavg": {"up": 10_000_000, "down": 4_000_000}},
        megabytes={"paper: codream-fast": known},
    )
    crossover = {"fedavg": {"codream": 2e6, "codream-fast": 34_000.0}}
    shape = Shape(clients=7, dreams=3, batches=2, image=InputSpec(1, 8, 8, 10))
    found = RoundSizes(shape=shape, field_bits=5, rows=[row], crossover=crossover)
    text = " ".join(printed(sizes_table(found)).split())
    assert "n = 7 clients, 2 batches of 3 dreams" in text
    assert "numbers, million 2.50" in text
    assert "fedavg 14.0" in text
    assert f"paper: fast {known or '-'}" in text
    assert "fedavg: 2.0 M (fast 0.03 M)" in text
