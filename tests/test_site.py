"""The documentation builds as a site whose links lead somewhere; it needs the extra `docs`."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import codream_secure

ROOT = Path(__file__).parents[1]

pytest.importorskip("mkdocs", reason="mkdocs: the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


def pages(site):
    return [page for page in site.rglob("*.html") if page.name != "404.html"]


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_file_and_nothing_is_fetched_from_elsewhere(site):
    assert len(pages(site)) > 15
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="([^"#]+)', text):
            if not target.startswith(("http", "mailto:", "data:")):
                assert (page.parent / unquote(html.unescape(target))).exists(), (page, target)
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', text), page


@pytest.mark.slow
def test_the_reference_has_every_public_name_with_its_arguments(site):
    text = (site / "reference.html").read_text(encoding="utf-8")
    for name, place in codream_secure._PLACES.items():
        assert f'id="codream_secure.{place}.{name}"' in text, name
    for told in ("checkpoint_every", "secure_sum", "at least four examples each"):
        assert told in text, told
