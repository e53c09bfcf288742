"""Experiment loggers see every round; one that fails ends nothing."""

import importlib.util
import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import codream_secure as cs
from codream_secure.errors import UserError
from codream_secure.runs.loggers import Following, figures_of

TINY = [
    "simulate",
    *("--clients", "4", "--rounds", "1", "--models", "linear", "--seed", "0"),
    *("--dreams", "4", "--dream-steps", "1", "--kd-epochs", "1", "--samples-per-client", "40"),
]
SMALL = {
    "clients": 3,
    "rounds": 2,
    "models": "linear",
    "dreams": 4,
    "dream_steps": 1,
    "kd_epochs": 1,
    "warmup_epochs": 1,
    "samples_per_client": 20,
}


class Recorder:
    def __init__(self, broken=""):
        self.calls, self.broken = [], broken

    def begin(self, name, settings):
        self._take("begin", name, settings)

    def log(self, figures, round_number):
        self._take("log", figures, round_number)

    def end(self):
        self._take("end")

    def _take(self, *call):
        self.calls.append(call)
        if call[0] == self.broken:
            raise RuntimeError("the line\nis down")


def test_event_files_for_tensorboard_hold_every_round(run, tmp_path):
    arguments = [*TINY, "--rounds", "2", "--out", "first", "--quiet"]
    assert run(*arguments, "--tensorboard") == (0, "", "")
    events = EventAccumulator(str(tmp_path / "first/tensorboard")).Reload()
    assert {"accuracy/clients", "accuracy/server", "cost/bytes_up"} <= set(events.Tags()["scalars"])
    assert [point.step for point in events.Scalars("accuracy/clients")] == [1, 2]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_what_is_not_installed_is_told_before_the_run(run, monkeypatch, name):
    monkeypatch.setattr("codream_secure.runs.loggers.find_spec", lambda _: None)
    code, out, err = run(*TINY, "--out", "first", f"--{name}")
    assert (code, out) == (2, "")
    assert err == f"error: --{name} needs a package: pip install 'codream-secure[{name}]'\n"


def test_a_logger_of_ones_own_sees_settings_and_every_round():
    mine = Recorder()
    found = cs.simulate("digits", loggers=[mine], **SMALL)
    begin, *logged, end = mine.calls
    assert begin[:2] == ("begin", "codream-digits")
    assert begin[2]["clients"] == 3
    assert [call[1:] for call in logged] == [(figures_of(row), row.round) for row in found.rounds]
    assert logged[0][1]["accuracy/clients"] == pytest.approx(sum(found.rounds[0].clients) / 3)
    assert "cost/epsilon" not in logged[0][1]  # there is none
    assert end == ("end",)


def test_one_that_fails_is_left_out_and_told_and_the_run_goes_on(tmp_path):
    broken, whole = Recorder("log"), Recorder()
    with pytest.warns(UserWarning, match="Recorder failed and was left out since: the line is"):
        found = cs.simulate("digits", loggers=[broken, whole], out=tmp_path / "run", **SMALL)
    assert len(found.rounds) == 2
    assert [call[0] for call in broken.calls] == ["begin", "log"]
    assert [call[0] for call in whole.calls] == ["begin", "log", "log", "end"]
    assert (tmp_path / "run/summary.json").is_file()


def test_one_that_cannot_begin_is_told_and_the_others_are_ended():
    first, second = Recorder(), Recorder("begin")
    with pytest.raises(UserError, match="cannot log to Recorder: the line is down"):
        Following([first, second]).begin("run", {})
    assert [call[0] for call in first.calls] == ["begin", "end"]


@pytest.mark.parametrize(
    ("loggers", "told"),
    [
        (["comet"], "unknown logger 'comet'; there are tensorboard, wandb, mlflow"),
        (["tensorboard"], "name one with out"),
    ],
)
def test_what_python_asks_for_wrongly_is_one_line(loggers, told):
    with pytest.raises(UserError, match=told):
        cs.simulate("digits", loggers=loggers, **SMALL)


needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name}: an extra")
    for name in ("wandb", "mlflow")
}


@needs["wandb"]
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_weights_and_biases_writes_every_round_offline(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, out, err = run(*TINY, "--rounds", "2", "--out", "first", "--wandb", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["rounds_finished"] == 2
    (file,) = (tmp_path / "first/wandb").glob("offline-run-*/*.wandb")
    told = file.read_bytes()
    assert b"accuracy/clients" in told
    assert b"samples_per_client" in told


@needs["mlflow"]
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_has_settings_and_every_round(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    code, out, err = run(*TINY, "--rounds", "2", "--out", "first", "--mlflow", "--json")
    assert (code, err) == (0, "")
    client = sys.modules["mlflow"].MlflowClient()
    experiment = client.get_experiment_by_name("codream-secure")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    assert found.data.params["clients"] == "4"
    history = client.get_metric_history(found.info.run_id, "accuracy/clients")
    assert [point.step for point in history] == [1, 2]
    assert json.loads(out)["accuracy"]["clients_mean"] in [point.value for point in history]
