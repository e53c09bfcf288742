"""Pages of the site that are no files of docs/: the README, what pages link to, the reference.

MkDocs calls the functions `on_…` (its hooks). A link from a page to a file outside docs/ leads to a
copy of that file in the site, under project/.
"""

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
_WHOLE = re.compile(r"\[([^\]]+)\]\(([^)\s#]+)\)")
_LINK = re.compile(r"(\]\()([^)\s#]+)([^)\s]*\))")


def site_path(path: str) -> str:
    """Return where a file of the project is in the site."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"project/{path}"


def linked(text: str, path: str) -> dict[str, str]:
    """Return the links of a page to files of the project: the link, and the file's path."""
    found = {}
    for _, target, _ in _LINK.findall(text):
        if "://" not in target:
            there = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if (ROOT / there).is_file():
                found[target] = there
    return found


def for_site(text: str, path: str) -> str:
    """Return a page whose links lead to where files are in the site; a folder has no page."""
    links, here = linked(text, path), posixpath.dirname(site_path(path))

    def moved(match: re.Match[str]) -> str:
        if match[2] not in links:
            return match[0]
        there = posixpath.relpath(site_path(links[match[2]]), here or ".")
        return match[1] + there + match[3]

    def unlinked(match: re.Match[str]) -> str:
        there = ROOT / posixpath.dirname(path) / match[2]
        return match[1] if "://" not in match[2] and there.is_dir() else match[0]

    return _WHOLE.sub(unlinked, _LINK.sub(moved, text))


def reference() -> str:
    """Return the page that mkdocstrings fills from docstrings: all public names."""
    sys.path.insert(0, str(ROOT))
    import codream_secure  # noqa: PLC0415

    places = codream_secure._PLACES  # noqa: SLF001 - the one list of what is public
    names = [f"codream_secure.{place}.{name}" for name, place in sorted(places.items())]
    names += [f"protocols.{name}" for name in ("secure_sum", "secure_mean")]
    return "# Reference\n\n" + "\n\n".join(f"::: {name}" for name in names) + "\n"


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401 - MkDocs' own
    """Add the README, every file that a page links to, and the reference."""
    todo = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(todo)
    while todo:
        path = todo.pop()
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            new = set(linked(text, path).values()) - seen
            seen |= new
            todo += new
    for path in sorted(seen):
        place = site_path(path)
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=os.fspath(ROOT / path)))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401
    """Lead links outside docs/ to their copies."""
    uri = page.file.src_uri
    if uri == "index.md":
        return for_site(markdown, "README.md")
    return for_site(markdown, uri.removeprefix("project/") if "project/" in uri else f"docs/{uri}")
