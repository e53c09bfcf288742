"""What the server learned, as SECURITY.md has it."""

from pathlib import Path

import msgspec
import pytest
from run_folders import changed, guarantee, summary_of

from codream_secure.report.disclosure import DISCLOSURES, learned

ROOT = Path(__file__).parents[3]
CODREAM = summary_of("codream")
FEDAVG = summary_of("fedavg")


def test_the_rows_are_those_of_security_md():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = text.split("## What the server learns\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in table]
    assert rows[0] == ("what", "when")
    assert rows[2:] == [(row.what, row.when) for row in DISCLOSURES]


def releases(name):
    return {"privacy": msgspec.to_builtins(guarantee(releases=[name]))}


@pytest.mark.parametrize(
    ("method", "changes", "rows"),
    [
        ("codream", {}, {0, 1, 11}),
        ("codream-fast", {}, {0, 1, 11}),
        ("codream-messenger", {}, {1, 6, 11}),
        ("codream", {"dreaming": {"dream_steps": 0}}, {1, 11}),
        ("codream", {"dreaming": {"adaptive": "kl"}}, {0, 1, 3, 11}),
        ("codream", {"dreaming": {"label_weighting": "confidence"}}, {0, 1, 4, 11}),
        ("codream", {"weights": "examples"}, {0, 1, 5, 11}),
        ("codream", {"dreaming": {"collaboration": False}}, set()),
        ("fedavg", {"protocol": {"secure": False}}, set()),
        ("scaffold-secure", {}, {7, 11}),
        ("fml-secure", {}, {7, 11}),
        ("fedproto-secure", {}, {8, 11}),
        ("codream", releases("class means"), {0, 1, 9, 11}),
        ("codream", releases("labels") | {"dreaming": {"dream_steps": 0}}, {2, 11}),
        ("dpsgd-secure", releases("summed gradients"), {10, 11}),
        ("codream", releases("local training"), {0, 1, 11}),
    ],
)
def test_a_row_stands_where_it_is_true(method, changes, rows):
    _, found = learned(changed(summary_of(method), changes))
    assert found == [row for index, row in enumerate(DISCLOSURES) if index in rows]


CLEAR = {"protocol": {"secure": False}}


@pytest.mark.parametrize(
    ("summary", "begins"),
    [
        (CODREAM, "Sums over clients, never"),
        (changed(CODREAM, CLEAR), "The input of every single client"),
        (changed(CODREAM, {"dreaming": {"collaboration": False}}), "Nothing"),
        (changed(summary_of("independent"), CLEAR), "Nothing"),
        (summary_of("centralized"), "Everything"),
        (changed(FEDAVG, CLEAR), "The input of every single"),
        (summary_of("fedavg-secure"), "Sums over clients, never"),
        (summary_of("unheard-of"), "Sums over clients, under masks; SECURITY.md does not say"),
        (None, "Unknown"),
    ],
)
def test_the_sentence_promises_nothing_that_is_not_known(summary, begins):
    assert learned(summary)[0].startswith(begins)
