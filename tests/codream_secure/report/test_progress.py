"""A run that nobody watches says a line a round."""

import io

from rich.console import Console

from codream_secure.report.progress import LiveProgress, RoundLines
from codream_secure.runs.formats import Row


def row(number, epsilon=None):
    return Row(
        round=number,
        clients=(0.5, 0.7),
        independent=(),
        personal=(),
        independent_personal=(),
        server=None,
        validation=None,
        aborted_steps=0,
        bytes_up=54_100,
        bytes_down=1_000,
        iterations=1.0,
        seconds=1.0,
        epsilon=epsilon,
        bytes_by_phase={},
    )


def test_a_log_gets_a_line_at_once_and_one_for_each_round():
    console = Console(file=io.StringIO(), width=200)
    with LiveProgress(console) as progress:
        lines = RoundLines(console, 1, 3)
        lines.begin(4)
        progress.start("dreaming", 2)
        lines(row(2))
        lines(row(3, 7.5))
    first, second, third = console.file.getvalue().splitlines()
    assert first == "4 clients, 2 of 3 rounds to do"
    assert second.startswith("round 2 of 3: clients 60.0 %, server -, 54.10 kB up and 1.00 kB down")
    assert "epsilon" not in second
    assert ", epsilon 7.5, " in third
    assert third.endswith("about 0 s left")


def test_a_terminal_gets_bars_and_no_lines():
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    lines = RoundLines(console, 0, 3)
    lines.begin(4)
    lines(row(1))
    assert console.file.getvalue() == ""
