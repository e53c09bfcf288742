"""`compare_methods` does what the command line does, with data and models in memory."""

import json

import numpy as np
import pytest
from torch import nn

import codream_secure as cs
from codream_secure.cli.main import cli
from codream_secure.compare.comparison import Comparison

OPTIONS = {"clients": 3, "samples_per_client": 20, "rounds": 1, "dreams": 4, "dream_steps": 1}
OPTIONS |= {"kd_epochs": 1, "warmup_epochs": 1}
RNG = np.random.default_rng(0)


def arrays(count):
    return RNG.random((count, 6, 6), np.float32), np.arange(count) % 3


def small_net(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, spec.classes))


def accuracies(rows):
    return {
        row["method"]: [c["figures"]["accuracy"] for c in row["cells"].values()] for row in rows
    }


def test_equal_settings_give_the_figures_of_the_command_line(capsys, tmp_path):
    found = cs.compare_methods(
        "digits",
        "fedavg, independent",
        seeds=[1],
        trials=1,
        fed_epochs=1,
        models="linear",
        **OPTIONS,
    )
    words = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    words += ["--methods=fedavg,independent", "--seeds=1", "--trials=1", "--fed-epochs=1"]
    words += ["--models=linear", "--json", f"--out={tmp_path / 'compared'}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *words], standalone_mode=False)
    assert ended.value.code == 0
    told = accuracies(json.loads(capsys.readouterr().out)["rows"])
    assert told == {row.method: [row.cells[1].figures.accuracy] for row in found.rows}
    assert set(told) == {"fedavg", "independent"}


def test_data_and_models_in_memory_and_a_page(tmp_path):
    data = cs.Data.per_client([arrays(12), arrays(16), arrays(20)], test=arrays(30))
    steps = []
    found = cs.compare_methods(
        data,
        ["codream", "independent"],
        trials=1,
        models=[small_net],
        out=tmp_path / "mine",
        on_step=lambda *told: steps.append(told),
        **{k: v for k, v in OPTIONS.items() if k not in ("clients", "samples_per_client")},
    )
    assert [row.method for row in found.rows] == ["codream", "independent"]
    assert all(row.mean and 0 <= row.mean.accuracy <= 1 for row in found.rows)
    assert {"report.html", "compare.json"} <= {p.name for p in (tmp_path / "mine").iterdir()}
    assert steps
    again = cs.write_report(tmp_path / "mine", out=tmp_path / "page.html")
    assert again.path == tmp_path / "page.html"
    assert again.path.is_file()
    assert [run.method for run in again.runs] == ["codream", "independent"]
    assert again.sentences


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"methods": ["fedagv"]}, "unknown method 'fedagv'"),
        ({"methods": []}, "name every method once"),
        ({"match": "minutes"}, "match must be one of rounds, iterations, seconds, bytes"),
        ({"fed_lr": -1.0}, "fed.lr|learning.rate"),
        ({"cleints": 3}, "unknown setting 'cleints'; did you mean 'clients'"),
        ({"dataset": "digits"}, "dataset cannot be given as an option"),
        ({"preset": "photos"}, "unknown preset 'photos'"),
    ],
)
def test_bad_arguments_are_one_line(arguments, told):
    with pytest.raises(cs.UserError, match=told):
        cs.compare_methods(**{"methods": ["fedavg"], **arguments})


def test_ctrl_c_leaves_what_is_finished_and_passes_on(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Comparison, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cs.compare_methods("digits", ["fedavg"], out=tmp_path / "mine")
    assert (tmp_path / "mine/compare.json").is_file()


def test_a_report_needs_a_run(tmp_path):
    with pytest.raises(cs.UserError, match="name at least one folder"):
        cs.write_report()
    with pytest.raises(cs.UserError, match="nowhere"):
        cs.write_report(tmp_path / "nowhere")
