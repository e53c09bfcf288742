"""TOML files are read in one way: with or without a byte order mark, and one line if damaged."""

import os
import stat

import pytest

from codream_secure.errors import UserError
from codream_secure.runs.files import text_of
from codream_secure.sites.policy import SitePolicy
from codream_secure.storage.files import append, replace, replace_folder
from codream_secure.storage.toml import load_toml

MARK = "\ufeff"


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(MARK + "rounds = 3\n", encoding="utf-8")
    assert load_toml(path) == {"rounds": 3}
    assert text_of(path) == "rounds = 3\n"


def test_a_policy_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "policy.toml").write_text(MARK + "min_cohort = 5\n", encoding="utf-8")
    assert SitePolicy.beside(tmp_path / "state").min_cohort == 5


def test_a_policy_that_is_a_folder_is_no_absent_one(tmp_path):
    (tmp_path / "policy.toml").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        SitePolicy.beside(tmp_path / "state")


@pytest.mark.parametrize("text", ["a b", "a = " + "[" * 5000, "a = 1\na = 2", "\x00"])
def test_what_is_no_toml_is_one_line(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a TOML file") as caught:
        load_toml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_modes_of_the_umask(tmp_path, umask, wanted):
    before = os.umask(umask)
    try:
        replace(tmp_path / "a", b"1")
        append(tmp_path / "b", "1\n")
        replace_folder(tmp_path / "c", {"d": b"1"})
    finally:
        os.umask(before)
    for name in ("a", "b", "c/d"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == wanted
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == wanted | (wanted & 0o444) >> 2
