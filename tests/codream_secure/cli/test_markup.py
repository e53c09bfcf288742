"""Names that users choose are never markup: in tables, on pages, in errors and in progress."""

import html
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import codream_secure
from codream_secure.report.progress import LiveProgress

NAMES = ("exp[lr=0.1]", "a[/b]", "a[bold]b", ":smile:", "<b>&amp;", "$x^$")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name, run, write_run):
    folder = write_run(name)
    code, out, err = run("runs", folder.parent)
    assert (code, err) == (0, "")
    assert folder.name in out
    code, out, err = run("report", folder)
    assert (code, err) == (0, "")
    assert f"written to {folder}" in out
    page = (folder / "report.html").read_text()
    assert name in html.unescape(page)
    if "<" in name:
        assert name not in page


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_the_progress(name):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with LiveProgress(console) as progress:
        progress.start(name, 1)
    assert name in text.getvalue()


@pytest.mark.parametrize("name", [*NAMES, "two\nlines", "\x1b[2Jcleared", "bytes\udcff"])
def test_a_name_in_an_error_is_one_line(name, run):
    code, _, err = run("report", name)
    assert code == 2
    assert err.count("\n") == 1
    assert "\x1b" not in err
    if name in NAMES:
        assert name in err


def test_consoles_are_made_in_one_place():
    made = [
        path.name
        for path in Path(codream_secure.__file__).parent.rglob("*.py")
        if re.search(r"\bConsole\(", path.read_text())
    ]
    assert made == ["text.py"]
