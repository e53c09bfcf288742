import json
import pydoc
from pathlib import Path
from types import SimpleNamespace

import pytest

from codream_secure.baselines.base import BaselineSettings
from codream_secure.baselines.run import BaselineRun
from codream_secure.compare.comparison import Comparison
from codream_secure.compare.plan import Budget, Plan
from codream_secure.compare.results import headline
from codream_secure.config.methods import parse_method
from codream_secure.errors import UserError, WriteError
from codream_secure.report.table import comparison_table
from codream_secure.runs.comparison_format import ComparisonResult
from codream_secure.runs.files import read_summary
from codream_secure.runs.formats import parse
from codream_secure.runs.reading import read_rows
from codream_secure.storage.folder_lock import claimed

TINY = {
    "clients": 4,
    "rounds": 2,
    "dreams": 8,
    "dream_steps": 2,
    "warmup_epochs": 1,
    "kd_epochs": 1,
    "models": "linear",
}
COMMAND = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]


def plan(*methods, seeds=(0,), options=None, **more):
    settings = BaselineSettings(local_epochs=1)
    return Plan(
        methods=methods,
        seeds=seeds,
        options={**TINY, **(options or {})},
        settings=settings,
        **more,
    )


def test_methods_are_compared_at_equal_iterations(tmp_path):
    result = Comparison(plan("fedavg", "codream", "independent"), tmp_path / "out").run()
    assert result.reference == "codream"
    means = {row.method: row.mean for row in result.rows}
    assert [row.method for row in result.rows] == ["fedavg", "codream", "independent"]
    assert means["codream"].rounds == 2
    one_round = means["fedavg"].iterations / means["fedavg"].rounds
    for name in ("fedavg", "independent"):
        assert means[name].iterations <= 1.02 * means["codream"].iterations
        assert means[name].iterations > means["codream"].iterations - 2 * one_round
    assert means["independent"].bytes_up == means["independent"].bytes_down == 0
    assert means["fedavg"].round_trips == means["fedavg"].rounds
    assert parse((tmp_path / "out/compare.json").read_bytes(), ComparisonResult) == result


@pytest.mark.parametrize("match", ["rounds", "bytes", "seconds"])
def test_other_costs_can_be_matched(tmp_path, match):
    result = Comparison(plan("codream", "fedavg", "independent", match=match), tmp_path).run()
    means = {row.method: row.mean for row in result.rows}
    cost = {
        "rounds": lambda m: m.rounds,
        "bytes": lambda m: m.bytes_up + m.bytes_down,
        "seconds": lambda m: m.seconds,
    }[match]
    if means["fedavg"].rounds > 1:
        assert cost(means["fedavg"]) <= 1.5 * cost(means["codream"])
    assert means["independent"].rounds >= 1


def test_a_budget_stops_before_it_is_overspent(tiny):
    run = BaselineRun(tiny(), parse_method("fedavg"), BaselineSettings(local_epochs=1))
    rounds = list(Budget("iterations", 10.0).limited(run))
    per_round = run.iterations / len(rounds)
    assert run.iterations <= 10.2 < run.iterations + per_round


def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    wanted = plan("codream", "fedavg", seeds=(0, 1), trials=2)
    original, begun = Comparison._run_cell, []

    def run_cell(self, name, seed, factor):
        begun.append((name, seed))
        if len(begun) == 3:
            raise KeyboardInterrupt
        original(self, name, seed, factor)

    monkeypatch.setattr(Comparison, "_run_cell", run_cell)
    with pytest.raises(KeyboardInterrupt):
        Comparison(wanted, tmp_path).run()
    kept = (tmp_path / "cells/codream-seed0/summary.json").read_bytes()
    monkeypatch.setattr(Comparison, "_trial", None)  # trials are not run again either
    result = Comparison(wanted, tmp_path).run()
    assert begun == [("codream", 0), ("fedavg", 0), ("codream", 1), ("codream", 1), ("fedavg", 1)]
    assert (tmp_path / "cells/codream-seed0/summary.json").read_bytes() == kept
    assert all(row.mean.seeds == 2 for row in result.rows)
    with pytest.raises(UserError, match="holds another comparison"):
        Comparison(plan("codream"), tmp_path)


def test_step_sizes_are_chosen_on_validation_at_equal_trials(tmp_path):
    result = Comparison(plan("codream", "fedavg", trials=3), tmp_path).run()
    for tried in result.tuning.values():
        assert [round(t.factor, 2) for t in tried] == [1.0, 0.33, 3.0]
    assert result.tuning.keys() == {"codream", "fedavg"}
    for name, tried in result.tuning.items():
        best = max(tried, key=lambda trial: trial.validation).factor
        summary = read_summary(tmp_path / f"cells/{name}-seed0")
        assert summary.step_size_factor == best


def test_a_method_that_fails_stands_in_its_cell_and_the_rest_goes_on(tmp_path):
    unequal = plan("codream", "fedavg", "avgkd", options={"models": "linear,mlp"})
    rows = {row.method: row for row in Comparison(unequal, tmp_path).run().rows}
    assert rows["fedavg"].mean is None
    assert "one architecture" in rows["fedavg"].cells[0].failed
    assert rows["avgkd"].mean.accuracy > 0


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("codream_secure.compare.comparison.BaselineRun.round", TypeError("no len()")),
        ("codream_secure.compare.comparison.BaselineRun.__init__", OSError(5, "disk error")),
        ("codream_secure.runs.folder.append", WriteError("cannot write to x: No space left")),
    ],
    ids=["TypeError", "OSError", "full disk"],
)
def test_whatever_a_cell_raises_the_others_are_run(run, tmp_path, monkeypatch, place, error):
    module, _, name = place.rpartition(".")
    owner = pydoc.locate(module)
    real = getattr(owner, name)

    def failing(*args, **more):
        folders = [one for one in args if isinstance(one, Path)]
        if "Baseline" in place or any("fedavg" in str(one) for one in folders):
            raise error
        return real(*args, **more)

    monkeypatch.setattr(owner, name, failing)
    methods = ["--methods", "fedavg,codream", "--trials", "1", "--rounds", "1"]
    code, out, err = run("compare", *COMMAND, *methods, "--out", "cmp")
    assert (code, "Traceback" in out + err) == (3, False)
    result = parse((tmp_path / "cmp/compare.json").read_bytes(), ComparisonResult)
    fedavg, codream = result.rows
    assert codream.mean.seeds == 1
    for cell in fedavg.cells.values():
        assert str(error) in cell.failed
        assert str(error) in (tmp_path / "cmp" / cell.folder / "failed.txt").read_text()
    assert "the page is report.html" in out
    assert (tmp_path / "cmp/report.html").is_file()


def test_a_folder_that_another_comparison_writes_to_is_refused(run, tmp_path):
    with claimed(tmp_path / "cmp"):
        code, _, err = run("compare", *COMMAND, "--out", "cmp")
    assert (code, "in use by another process" in err) == (2, True)


def test_under_dp_what_has_no_privacy_is_not_available(tmp_path):
    options = {"dp_eps": 8.0, "dp_steps": 4, "models": "linear"}
    private = {k: v for k, v in TINY.items() if k != "warmup_epochs"} | options
    wanted = Plan(
        methods=("codream", "fedavg-secure", "independent", "moon"),
        seeds=(0,),
        options=private,
        settings=BaselineSettings(),
    )
    rows = {row.method: row for row in Comparison(wanted, tmp_path).run().rows}
    for name in ("codream", "fedavg-secure", "independent"):
        assert 7 < rows[name].mean.epsilon <= 8
    assert rows["codream"].mean.accuracy_validated is None
    assert "not available" in rows["moon"].cells[0].failed


def test_settings_of_one_way_of_dreaming_do_not_stop_another(tmp_path):
    both = plan("codream", "codream-fast", options={"latent": 4, "dream_lr": 0.1})
    rows = Comparison(both, tmp_path).run().rows
    assert all(row.mean for row in rows)
    with pytest.raises(UserError, match="--latent means nothing to any of codream, fedavg"):
        plan("codream", "fedavg", options={"latent": 4})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "codream,telepathy"], "unknown method 'telepathy'"),
        (["--methods", "codream,codream"], "every method once"),
        (["--seeds", "one"], "--seeds must be whole numbers"),
        (["--seeds", "0,0"], "every seed once"),
        (["--seeds=-1"], "not be negative"),
        (["--sizes", "--models", "mlp"], "--models cannot be used with --sizes"),
    ],
)
def test_bad_input_is_one_line(run, arguments, message):
    code, out, err = run("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_command_prints_a_table_or_json(run, tmp_path):
    arguments = ["compare", "--methods", "codream,fedavg", "--trials", "1", "--target", "0.1"]
    code, out, _ = run(*arguments, *COMMAND, "--out", "cmp")
    assert code == 0
    assert "fedavg" in out
    assert "equal iterations" in out
    assert "…" not in out, "a heading was cut, though a pipe has no width"
    code, again, err = run(*arguments, *COMMAND, "--out", "cmp", "--json")
    assert (code, err) == (0, "")
    assert json.loads(again)["rows"][1]["mean"]["bytes_to_target"] > 0
    assert (tmp_path / "cmp/cells/fedavg-seed0/metrics.jsonl").is_file()


def test_both_accuracies_stand_apart_beside_what_the_server_sees(tmp_path):
    methods = ("independent", "fd-secure", "fedgh", "fml-secure")
    options = {"models": "mlp", "partition": "dirichlet:0.1", "samples_per_client": 40, "rounds": 1}
    settings = BaselineSettings(local_epochs=1, messenger="linear")
    wanted = Plan(
        methods=methods, seeds=(0,), options={**TINY, **options}, settings=settings, match="rounds"
    )
    result = Comparison(wanted, tmp_path).run()
    run = BaselineRun(
        wanted.config(parse_method("fd"), 0), parse_method("fd"), BaselineSettings(local_epochs=1)
    )
    counts = run.observer.label_counts
    single = int(((counts > 0).sum(axis=0) == 1).sum())
    assert single
    for row in result.rows:
        assert row.mean.largest_class == pytest.approx(
            (counts.max(axis=1) / counts.sum(axis=1)).mean()
        )
        last = read_rows(tmp_path / f"cells/{row.method}-seed0")[-1]
        assert row.mean.personal == pytest.approx(sum(last.personal) / 4)
        assert row.mean.accuracy == pytest.approx(sum(last.clients) / 4)
    sees = list(comparison_table(result).columns[-1].cells)
    assert sees == ["-", f"sums, {single} told", "each", "sums"]


def test_a_failed_cell_gives_exit_code_3(run):
    methods = ["--methods", "codream,fedavg", "--models", "linear,mlp", "--trials", "1"]
    code, out, _ = run("compare", *COMMAND, *methods, "--out", "cmp")
    assert code == 3
    assert "needs one architecture" in " ".join(out.split())


def test_what_is_compared_is_one_model_for_all_or_the_mean_over_clients():
    row = SimpleNamespace(server=0.9, clients=[0.5, 0.7])
    assert headline(row, parse_method("fedavg-secure")) == 0.9
    assert headline(row, parse_method("codream")) == pytest.approx(0.6)


def test_under_a_budget_the_schedule_follows_what_is_spent(tiny):
    run = BaselineRun(
        tiny(models="linear", schedule="cosine"),
        parse_method("fedavg"),
        BaselineSettings(local_epochs=1),
    )
    rates = []
    run.after_round.append(lambda _: rates.append(run._clients[0].rate))
    for _ in Budget("rounds", 4).limited(run):
        pass
    assert rates == pytest.approx([1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])


def test_where_every_cell_fails_the_reasons_are_told(run):
    methods = ["--methods", "fedavg,fedprox", "--models", "linear,mlp", "--trials", "1"]
    code, out, err = run("compare", *COMMAND, *methods, "--out", "cmp")
    assert (code, out) == (3, "")
    told = [line for line in err.splitlines() if "one architecture" in line]
    assert [line.split()[:2] for line in told] == [["fedavg", "failed:"], ["fedprox", "failed:"]]
