"""`simulate` does what the command line does, and gives models to keep."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torch import nn

import codream_secure as cs
from codream_secure.cli.main import cli
from codream_secure.learning.learner import PlainLearner
from codream_secure.runs.formats import compact, parse_row

SMALL = {"rounds": 2, "dreams": 8, "dream_steps": 2, "warmup_epochs": 2, "kd_epochs": 1}
DIGITS = load_digits()
IMAGES, TARGETS = (DIGITS.images / 16).astype(np.float32), DIGITS.target


def small_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def data():
    return cs.Data.from_arrays((IMAGES[:240], TARGETS[:240]), (IMAGES[240:440], TARGETS[240:440]))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("api") / "run"
    seen = []
    found = cs.simulate(
        data,
        models=[small_net, "mlp"],
        clients=3,
        out=out,
        checkpoint_every=1,
        on_round=seen.append,
        **SMALL,
    )
    assert tuple(seen) == found.rounds
    return found


def without_times(summary):
    left_out = {"seconds"}
    return {k: v for k, v in summary.items() if k not in left_out}


def test_equal_settings_give_the_summary_of_the_command_line(capsys, tmp_path):
    options = {**SMALL, "clients": 3, "samples_per_client": 40, "models": "linear", "seed": 4}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    with pytest.raises(SystemExit) as ended:
        cli.main(["simulate", *words, "--json", f"--out={tmp_path / 'run'}"], standalone_mode=False)
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    found = json.loads(compact(cs.simulate("digits", **options).summary))
    # Sizes of keys may differ by a byte: they are fresh in every run.
    for one in (told, found):
        one.pop("bytes")
    assert without_times(found) == without_times(told)


def test_the_run_is_in_its_folder(run):
    rows = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert tuple(map(parse_row, rows)) == run.rounds
    assert (run.folder / "summary.json").is_file()
    assert (run.folder / "report.html").is_file()
    assert run.summary.models == ("python:small_net", "mlp", "python:small_net")


def test_models_predict_what_was_measured(run):
    x_test, y_test = IMAGES[240:440], TARGETS[240:440]
    row = run.rounds[run.summary.reported_round - 1]
    for model, accuracy in zip(run.clients, row.clients, strict=True):
        assert (model.predict(x_test) == y_test).mean() == pytest.approx(accuracy)
        assert model.description.training.test_accuracy == accuracy
    assert (run.student.predict(x_test) == y_test).mean() == pytest.approx(row.server)


def test_nothing_is_written_without_out(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = cs.simulate(data, models="linear", clients=3, **{**SMALL, "rounds": 1})
    assert found.folder is None
    assert list(tmp_path.iterdir()) == []


def test_clients_have_their_own_parts():
    parts = [(IMAGES[a:b], TARGETS[a:b]) for a, b in ((0, 60), (60, 200), (200, 260))]
    data = cs.Data.per_client(parts, test=(IMAGES[300:400], TARGETS[300:400]))
    found = cs.simulate(data, models="linear", **{**SMALL, "rounds": 1})
    assert found.summary.clients == 3
    assert found.summary.partition == "per-client"
    largest = [np.bincount(y).max() / len(y) for _, y in parts]
    # A tenth of each part is set aside for validation, class by class up to one example.
    assert found.summary.largest_class == pytest.approx(np.mean(largest), abs=0.03)


def test_steps_are_told(data):
    seen = []
    cs.simulate(
        data,
        models="linear",
        clients=3,
        on_step=lambda *told: seen.append(told),
        **{**SMALL, "rounds": 1},
    )
    assert seen[0] == ("local training", 0, 3)
    assert ("round 1 of 1: dream steps", 3, 3) in seen


def test_an_interrupted_run_goes_on_and_ends_alike(data, tmp_path):
    options = {**SMALL, "models": "linear", "clients": 3, "seed": 2}
    whole = cs.simulate(data, **options)
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        cs.simulate(data, out=out, checkpoint_every=1, **{**options, "on_step": Cut(1)})
    again = cs.simulate(data, resume=out)
    assert [row.clients for row in again.rounds] == [row.clients for row in whole.rounds]
    assert again.summary.resumed == 1


@pytest.mark.parametrize("step", ["local_step", "joint_step"])
def test_a_signal_ends_training_within_a_step_and_loses_no_round(data, tmp_path, monkeypatch, step):
    """Training that would take for ever from the second round on is interrupted."""
    options = {**SMALL, "models": "linear", "clients": 3, "seed": 2, "local_epochs": 1}
    whole = cs.simulate(data, **options)
    out, rounds = tmp_path / "cut", []
    real = getattr(PlainLearner, step)

    def endless(self, *args):
        real(self, *args)
        if rounds:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        while rounds:
            self.data.next()

    monkeypatch.setattr(PlainLearner, step, endless)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            cs.simulate(data, out=out, checkpoint_every=1, on_round=rounds.append, **options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    monkeypatch.undo()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(rounds) == 1
    again = cs.simulate(data, resume=out)
    assert [row.clients for row in again.rounds] == [row.clients for row in whole.rounds]


class Cut:
    """Raises KeyboardInterrupt in the round after the given one."""

    def __init__(self, rounds):
        self.start = f"round {rounds + 1} of"

    def __call__(self, activity, done, total):
        if activity.startswith(self.start) and done == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cleints": 3}, "unknown setting 'cleints'; did you mean 'clients'"),
        ({"clients": "three"}, "--clients must be a whole number"),
        ({"models": [3]}, "a int is no model"),
        ({"models": [lambda: 3], "clients": 3}, "must return a torch.nn.Module"),
        ({"models": "resnet9"}, "unknown model"),
        ({"dataset": "digits"}, "give it as the first argument"),
        ({"out": "a", "resume": "b"}, "out cannot be used with resume"),
        ({"resume": "nowhere"}, "there is no such folder"),
    ],
)
def test_what_is_wrong_is_one_line(data, options, words):
    with pytest.raises(cs.UserError, match=words) as caught:
        cs.simulate(data, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "iid"}, "partition cannot be used"),
        ({"samples_per_client": 10}, "samples_per_client cannot be used"),
        ({"clients": 5}, "clients must be 1"),
    ],
)
def test_what_deals_data_contradicts_parts_of_clients(options, words):
    data = cs.Data.per_client([(IMAGES[:50], TARGETS[:50])], test=(IMAGES, TARGETS))
    with pytest.raises(cs.UserError, match=words):
        cs.simulate(data, **options)


def test_the_import_loads_no_torch_and_lists_its_names():
    code = (
        "import sys, codream_secure as cs; "
        "assert not {'torch', 'numpy', 'click'} & set(sys.modules), 'slow import'; "
        "print(dir(cs))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(sorted(cs.__all__))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cs.nothing  # noqa: B018
