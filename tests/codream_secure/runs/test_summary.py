"""What a summary and a row say of a run, and that both are read as they were written."""

import itertools

import msgspec
import pytest
from run_folders import changed, summary_of

from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.config.methods import parse_method
from codream_secure.federation.simulation import Simulation
from codream_secure.runs.formats import (
    FORMAT,
    FormatError,
    Summary,
    compact,
    parse,
    parse_row,
    pretty,
)
from codream_secure.runs.summary import row_of, summarise


def played(run):
    (measured,) = itertools.islice(run.rounds(), 1)
    return run, measured


def check_survives(run, measured):
    summary, row = summarise(run), row_of(run, measured)
    assert parse(pretty(summary), Summary) == summary
    assert parse_row(compact(row)) == row
    assert (row.bytes_up, row.bytes_down) == (
        summary.bytes.per_client_up,
        summary.bytes.per_client_down,
    )
    return summary


@pytest.mark.parametrize(
    "options",
    [{}, {"secure": False}, {"collaboration": False}, {"dp_eps": 8.0, "models": "mlp"}],
    ids=str,
)
def test_a_summary_and_a_row_survive_their_file(tiny, options):
    summary = check_survives(*played(Simulation(tiny(**options))))
    assert summary.dreaming.dreams == 6
    assert summary.baseline is None
    assert (summary.privacy is None) == ("dp_eps" not in options)


@pytest.mark.parametrize("method", ["fedavg", "fedavg-secure", "independent"])
def test_a_baseline_has_no_dreams_and_as_much_protocol_as_it_uses(tiny, method):
    run = BaselineRun(tiny(), parse_method(method), BaselineSettings(local_epochs=1))
    summary = check_survives(*played(run))
    assert summary.dreaming is None
    assert summary.baseline["local_epochs"] == 1
    assert summary.protocol.secure == (method == "fedavg-secure")
    assert (summary.protocol.threshold is None) == (method != "fedavg-secure")
    assert (summary.protocol.round_trips > 0) == (method != "independent")


def test_a_summary_of_another_format_is_told_from_a_damaged_one():
    text = pretty(summary_of())
    with pytest.raises(
        FormatError, match=f"format {FORMAT + 1}; this version reads format {FORMAT}"
    ):
        parse(pretty(changed(summary_of(), {"format": FORMAT + 1})), Summary)
    for spoiled in (text.replace('"seed"', '"sead"'), text.replace('"digits"', "7")):
        with pytest.raises(msgspec.ValidationError):
            parse(spoiled, Summary)
