"""Figures of a cell from its rows, and means over seeds."""

import msgspec
import pytest
from run_folders import changed, rounds, summary_of

from codream_secure.compare.results import figures, headline, means
from codream_secure.config.methods import parse_method
from codream_secure.runs.comparison_format import Cell

CODREAM, FEDAVG = parse_method("codream"), parse_method("fedavg")


def found(method=CODREAM, *, target=None, rows=None, **summary):
    told = summary_of(method.name, top=0.9, sent=3000, independent=None, epsilon=None, number=3)
    rows = rows or rounds(0.9, 3, sent=3000)
    return figures(method, rows, changed(told, summary), target)


def test_the_headline_is_the_one_model_for_all_or_the_clients_mean():
    row = msgspec.structs.replace(rounds(0.6, 1, sent=1)[0], server=0.8)
    assert headline(row, FEDAVG) == 0.8
    assert headline(row, CODREAM) == pytest.approx(0.6)
    assert headline(msgspec.structs.replace(row, server=None), FEDAVG) == pytest.approx(0.6)


def test_accuracy_is_the_last_rounds_and_beside_it_that_of_the_validated_round():
    one = found(reported_round=2)
    assert one.accuracy == pytest.approx(0.9)
    assert one.accuracy_validated == pytest.approx(0.6)
    assert one.rounds == 3
    assert (one.bytes_up, one.bytes_down) == (3000, 6000)


def test_bytes_to_the_target_are_those_of_the_first_round_that_reached_it():
    assert found(target=0.5).bytes_to_target == 2000 + 4000
    assert found(target=0.9).bytes_to_target == 3000 + 6000
    assert found(target=0.95).bytes_to_target is None
    assert found().bytes_to_target is None


def test_personal_accuracy_is_the_mean_of_the_last_round():
    rows = [msgspec.structs.replace(r, personal=(0.5, 0.9)) for r in rounds(0.9, 3, sent=3000)]
    assert found(rows=rows).personal == pytest.approx(0.7)
    assert found().personal is None


def cell(seed, accuracy=None, **changes):
    if accuracy is None:
        return Cell(folder=f"{seed}", figures=None, failed="out of memory")
    one = msgspec.structs.replace(found(), accuracy=accuracy, **changes)
    return Cell(folder=f"{seed}", figures=one, failed=None)


def test_means_leave_out_seeds_that_failed():
    mean = means([cell(0, 0.6), cell(1), cell(2, 0.9)])
    assert mean.seeds == 2
    assert mean.accuracy == pytest.approx(0.75)
    assert mean.accuracy_spread == pytest.approx(0.15)
    assert means([cell(0), cell(1)]) is None


def test_a_figure_that_a_seed_lacks_has_no_mean():
    mean = means([cell(0, 0.6, bytes_to_target=10), cell(1, 0.6, bytes_to_target=None)])
    assert mean.bytes_to_target is None
    assert means([cell(0, 0.6, bytes_to_target=10)]).bytes_to_target == 10
