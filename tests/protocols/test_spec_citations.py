"""Every "SPEC x.y" in the code names a section that SPEC.md has."""

import re

from secagg_helpers import ROOM

CITATION = re.compile(r"SPEC ((?:\d+(?:\.\d+)*)(?:(?:, | to | and )\d+(?:\.\d+)*)*)")
NUMBER = re.compile(r"\d+(?:\.\d+)*")


def sections() -> list[str]:
    text = (ROOM / "SPEC.md").read_text(encoding="utf-8")
    return re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", text, flags=re.MULTILINE)


def test_every_citation_resolves():
    known = set(sections())
    found = 0
    for path in sorted(ROOM.rglob("*.py")):
        for citation in CITATION.findall(path.read_text(encoding="utf-8")):
            for number in NUMBER.findall(citation):
                assert number in known, f"{path.name} cites SPEC {number}"
                found += 1
    assert found > 20


def test_sections_are_numbered_without_gaps_or_repeats():
    numbers = sections()
    assert len(set(numbers)) == len(numbers)
    parents = [n for n in numbers if "." not in n]
    assert parents == [str(i + 1) for i in range(len(parents))]
    for parent in parents:
        children = [n for n in numbers if n.startswith(parent + ".")]
        assert children == [f"{parent}.{i + 1}" for i in range(len(children))]


def test_references_inside_the_spec_resolve():
    text = (ROOM / "SPEC.md").read_text(encoding="utf-8")
    cited = set(re.findall(r"(?<![\w.\d])([1-8]\.\d)(?![\w.])", text))
    assert cited <= set(sections())


def test_every_decision_is_somewhere_and_every_file_named_is_there():
    place = ROOM.parent / "docs" / "protocol-decisions.md"
    text = place.read_text(encoding="utf-8")
    rows = re.findall(r"^\| D(\d+) \|[^|]*(?:\\\|[^|]*)*\|(.*)\|$", text, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 36))
    for _, where in rows:
        for name in re.findall(r"`([\w/]+\.(?:py|md))`", where):
            assert (ROOM.parent / name).is_file(), name
        sections_named = set(re.findall(r"(?<![\w.\d])([1-8]\.\d+)(?![\w.])", where))
        assert sections_named <= set(sections()), where
        assert NUMBER.search(where) or "`" in where or "not in this version" in where
