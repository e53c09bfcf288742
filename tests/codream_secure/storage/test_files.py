"""Files are replaced whole, and nothing else in the package writes any."""

import ast
import errno
import os
import threading
from pathlib import Path

import pytest

from codream_secure.errors import WriteError
from codream_secure.storage import files

ROOT = Path(__file__).parents[3]


class _FailingOs:
    """The module `os`, of which one function fails as a disk without room does."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        def fail(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return fail if name == self._name else getattr(os, name)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_file_that_cannot_be_replaced_is_the_old_one(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    files.replace(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", _FailingOs(call))
        with pytest.raises(WriteError, match=r"file: No space left on device; make room"):
            files.replace(path, "new" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_line_that_cannot_be_appended_leaves_the_file_as_it_was(tmp_path, monkeypatch, call):
    path = tmp_path / "lines"
    files.append(path, "one\n")
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", _FailingOs(call))
        with pytest.raises(WriteError):
            files.append(path, "two\n")
    assert path.read_text() == "one\n"


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    files.replace_folder(folder, {"a": b"1", "b": b"1"})
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", _FailingOs("write"))
        with pytest.raises(WriteError):
            files.replace_folder(folder, {"a": b"2"})
    assert list(tmp_path.iterdir()) == []
    files.replace_folder(folder, {"a": b"3"})
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [("a", b"3")]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "page").write_text("old")
    (tmp_path / "link").symlink_to("page")
    files.replace(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    files.replace(tmp_path / "pipe", "through")
    reader.join(30)
    assert got == ["through"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_in_the_way_is_one_clear_error(tmp_path):
    with pytest.raises(WriteError, match="Is a directory"):
        files.replace(tmp_path, "text")
    with pytest.raises(WriteError, match="No such file or directory"):
        files.replace(tmp_path / "nowhere/page", "text")


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "summary.json.123.part").touch()
    (tmp_path / "models.part").mkdir()
    (tmp_path / "models.part/a").touch()
    (tmp_path / "kept").touch()
    files.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


# Calls that write by the name of a file.
_WRITERS = {"write_text", "write_bytes", "save_file", "touch", "copyfile", "copytree"}
_TO_A_BUFFER = {"savefig", "savez", "savez_compressed"}
_ALLOWED = {
    ("codream_secure/flower/operations/local.py", "open"),  # logs of other programs
    ("codream_secure/cli/streams.py", "open"),  # the null device
}


def _is_write(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
    if name == "open":
        given = [*call.args, *(word.value for word in call.keywords)]
        modes = [w.value for w in given if isinstance(w, ast.Constant) and isinstance(w.value, str)]
        return any(len(mode) < 4 and set(mode) & set("wax+") for mode in modes)
    if name in _TO_A_BUFFER:
        return not call.args or ast.unparse(call.args[0]) != "buffer"
    return name in _WRITERS


def writes(path):
    """Return the names of the calls in a module that write a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = (n for n in nodes if isinstance(n, ast.Call))
    named = [c for c in calls if isinstance(c.func, ast.Attribute | ast.Name)]
    return [ast.unparse(c.func).rpartition(".")[2] for c in named if _is_write(c)]


def test_nothing_else_writes_files():
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "codream_secure").rglob("*.py")
        if path.name != "files.py" or path.parent.name != "storage"
        for name in writes(path)
    }
    assert found == _ALLOWED
    assert writes(ROOT / "benchmarks/shared/grid.py") == []
    assert writes(Path(__file__)) != [], "the check sees nothing"
