"""One process at a time in a folder, and names that nobody else has."""

import multiprocessing
from pathlib import Path

import pytest

from codream_secure.errors import UserError
from codream_secure.runs.folder import RunFolder
from codream_secure.storage.folder_lock import claim, claimed, is_empty, new_folder

COUNT = 20


def _work(base, barrier, results):
    for number in range(COUNT):
        barrier.wait()
        try:
            RunFolder.create(Path(base) / str(number)).close()
            results.put((number, "", str(new_folder(Path(base) / "runs" / str(number)))))
        except UserError as error:
            results.put((number, str(error), str(new_folder(Path(base) / "runs" / str(number)))))


def test_of_two_processes_that_want_one_folder_one_gets_it_and_names_differ(tmp_path):
    fork = multiprocessing.get_context("spawn")
    barrier, results = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=_work, args=(str(tmp_path), barrier, results)) for _ in range(2)]
    for process in both:
        process.start()
    got = [results.get(timeout=120) for _ in range(2 * COUNT)]
    for process in both:
        process.join(30)
    for number in range(COUNT):
        first, second = (found for found in got if found[0] == number)
        (lost,) = filter(None, (first[1], second[1]))
        assert "in use by another process" in lost or "is not empty" in lost
        assert first[2] != second[2]


def test_a_folder_that_is_held_is_refused_and_free_afterwards(tmp_path):
    with claimed(tmp_path / "a"), pytest.raises(UserError, match="in use by another process"):
        claim(tmp_path / "a")
    (tmp_path / "a/compare.json.123.part").touch()  # of a process that was killed
    assert is_empty(tmp_path / "a")
    claim(tmp_path / "a").release()


def test_somebody_elses_folder_gets_no_lock(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        RunFolder.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
