"""Fills the figures of README.md and docs/*.md from the recorded files in benchmarks/results/.

    python docs/fill_figures.py            fill
    python docs/fill_figures.py --check    exit code 1 if a figure differs from its record

A figure stands between two comments, which a reader of the page does not see:

    <!--f FILE FIELDS FORMAT-->93.7 %<!--/f-->

FILE is the name of a record without its ending: FILE.json, or else the first table of FILE.txt.
FIELDS are names with slashes between them; `case=pixels` picks the one row of that case, and
`case=epsilon 1&method=CoDream` the one where both hold; ` + ` adds. FORMAT is `%` (of a fraction,
with one decimal), `%0` (with none), `kB` (of bytes), or a number of decimals.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_FIGURE = re.compile(r"(<!--f (\S+) ([^>]+?) ([^\s>]+?)-->)(.*?)(<!--/f-->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that may have figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """Return a page with every figure as it is recorded."""
    return _FIGURE.sub(lambda m: m[1] + _shown(m[2], m[3], m[4]) + m[6], text)


def _shown(file: str, fields: str, form: str) -> str:
    value = sum(float(_found(_record(file), one)) for one in fields.split(" + "))
    if form.startswith("%"):
        return f"{100 * value:.{int(form[1:] or 1)}f} %"
    if form == "kB":
        return f"{value / 1000:,.0f} kB"
    return f"{value:,.{form}f}"


def _found(value: Any, fields: str) -> Any:  # noqa: ANN401 - whatever a record holds
    for name in fields.split("/"):
        if "=" in name:
            wanted = dict(condition.split("=") for condition in name.split("&"))
            (value,) = (row for row in value if all(row[k] == v for k, v in wanted.items()))
        else:
            value = value[name]
    return value


@cache
def _record(file: str) -> Any:  # noqa: ANN401
    path = RESULTS / f"{file}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"rows": _table((RESULTS / f"{file}.txt").read_text(encoding="utf-8"))}


def _table(text: str) -> list[dict[str, str]]:
    """Return the rows of the first table that the scripts of benchmarks/ printed."""
    lines = text.split("┡", maxsplit=1)[0].splitlines()
    names = [cell.strip() for cell in lines[-1].strip("┃").split("┃")]
    body = text.split("┩\n", 1)[1].split("└", maxsplit=1)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in body]
    return [dict(zip(names, row, strict=True)) for row in cells]


def main(words: list[str]) -> int:
    """Fill or check all pages; return the exit code."""
    code = 0
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            if "--check" in words:
                sys.stderr.write(f"{page}: run python docs/fill_figures.py\n")
                code = 1
            else:
                page.write_text(after, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
