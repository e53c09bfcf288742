"""What the server learned, as SECURITY.md has it."""

from pathlib import Path

import pytest

from codream_secure.report.disclosure import DISCLOSURES, learned

ROOT = Path(__file__).parents[3]
CODREAM = {
    "method": "codream",
    "collaboration": True,
    "secure": True,
    "dream_steps": 20,
    "adaptive": "none",
    "label_weighting": "equal",
    "weights": "equal",
}


def test_the_rows_are_those_of_security_md():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = text.split("## What the server learns\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in table]
    assert rows[0] == ("what", "when")
    assert rows[2:] == [(row.what, row.when) for row in DISCLOSURES]


@pytest.mark.parametrize(
    ("changed", "rows"),
    [
        ({}, {0, 1, 9}),
        ({"method": "codream-fast"}, {0, 1, 9}),
        ({"dream_steps": 0}, {1, 9}),
        ({"adaptive": "kl"}, {0, 1, 3, 9}),
        ({"label_weighting": "confidence"}, {0, 1, 4, 9}),
        ({"weights": "examples"}, {0, 1, 5, 9}),
        ({"collaboration": False}, set()),
        ({"method": "fedavg", "secure": False}, set()),
        ({"method": "scaffold-secure"}, {6, 9}),
        ({"privacy": {"releases": [{"name": "class means"}]}}, {0, 1, 7, 9}),
        ({"privacy": {"releases": [{"name": "labels"}]}, "dream_steps": 0}, {2, 9}),
        (
            {
                "method": "dpsgd-secure",
                "privacy": {"releases": [{"name": "summed gradients"}]},
            },
            {8, 9},
        ),
        ({"privacy": {"releases": [{"name": "local training"}]}}, {0, 1, 9}),
    ],
)
def test_a_row_stands_where_it_is_true(changed, rows):
    _, found = learned(CODREAM | changed)
    assert found == [row for index, row in enumerate(DISCLOSURES) if index in rows]


@pytest.mark.parametrize(
    ("summary", "begins"),
    [
        (CODREAM, "Sums over clients, never"),
        (CODREAM | {"secure": False}, "The input of every single client"),
        (CODREAM | {"collaboration": False}, "Nothing"),
        ({"method": "independent", "secure": False}, "Nothing"),
        ({"method": "centralized"}, "Everything"),
        ({"method": "fedavg", "secure": False, "collaboration": True}, "The input of every single"),
        ({"method": "fedavg-secure", "secure": True}, "Sums over clients, never"),
        ({"method": "fedavg"}, "Unknown"),
        ({}, "Unknown"),
    ],
)
def test_the_sentence_promises_nothing_that_is_not_known(summary, begins):
    assert learned(summary)[0].startswith(begins)
