"""A run that is interrupted and gone on with is the run that was never interrupted."""

import base64
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import closing

import pytest
from interrupted_runs import (
    SHORT,
    begin,
    dreams_of,
    figures,
    go_on,
    measured,
    models,
    same,
)

from codream_secure.config.settings import Config
from codream_secure.dreaming.group import DreamGroup
from codream_secure.errors import UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.privacy.dpsgd import PrivateTrainer
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.summary import summarise
from codream_secure.storage.checkpoint import decode


class CrashError(Exception):
    """The process ends here."""


METHODS = {
    "plain": {"models": "resnet8", "width": 4},
    "two-stage, several models": {
        "models": "lenet5,mlp",
        "acquisition": "two-stage",
        "local_epochs": 1,
        "statistics_momentum": 0.5,
    },
    "fast, adaptive, confidence": {
        "dream_augment": "crop",
        "models": "resnet8",
        "width": 4,
        "method": "codream-fast",
        "dream_batches": 2,
        "generator_average": 0.5,
        "generator_reset": 3,
        "adaptive": "jsd",
        "label_weighting": "confidence",
        "labels": "logits",
    },
    "parallel batches": {
        "models": "resnet8",
        "width": 4,
        "method": "codream-fast",
        "dream_batches": 2,
        "parallel_batches": True,
        "statistics_momentum": 0.5,
    },
    "fomaml, local steps, weights": {
        "method": "codream-fast",
        "meta": "fomaml",
        "local_steps": 2,
        "weights": "examples",
        "partition": "dirichlet:0.5",
    },
    "malicious, dropout": {
        "clients": 6,
        "threat_model": "malicious",
        "dropout": 0.2,
        "dream_steps": 6,
        "key_steps": 5,
    },
    "semi-honest, dropout": {"clients": 6, "dropout": 0.2, "dream_steps": 6, "key_steps": 5},
    "in the clear, dropout": {"clients": 6, "dropout": 0.2, "dream_steps": 6, "secure": False},
    "alone": {"collaboration": False, "buffer": 2},
    "private": {"dp_eps": 8.0, "models": "mlp", "dp_steps": 6, "dp_warmup": 0.4},
}


# Run by `make test-slow`: what they add to the others is small.
RARE = {
    "fomaml, local steps, weights",
    "parallel batches",
    "semi-honest, dropout",
    "in the clear, dropout",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in RARE else ()) for n in METHODS]
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(tiny, tmp_path, arrays, name):
    config = tiny(**{"rounds": 3, "dataset": arrays, **METHODS[name]})
    whole = begin(config, tmp_path / "whole")
    begin(config, tmp_path / "parts", stop_after=1)
    go_on(tmp_path / "parts", stop_after=2)
    parts = go_on(tmp_path / "parts")
    assert parts.resumed == 2
    assert parts.observer.history == whole.observer.history
    assert same(models(parts), models(whole))
    assert same(parts.weights(), whole.weights())
    assert dreams_of(parts) == dreams_of(whole)[-len(parts.dreams) :]
    assert figures(parts) == figures(whole)
    if "dropout" in name:
        assert whole.aggregator.aborted_steps > 0
    metrics = [measured(tmp_path / run) for run in ("whole", "parts")]
    assert metrics[0] == metrics[1]


# -- processes that end where they should not ---------------------------------------------------

OPTIONS = [part for k, v in SHORT.items() for part in (f"--{k.replace('_', '-')}", str(v))]

KILLED = {
    # In the second dream step of round 3: two steps and the labels in each round before.
    "in a round": """
from codream_secure.aggregation.aggregator import Aggregator
real, calls = Aggregator.sum, []
def sum(self, request):
    calls.append(request)
    if len(calls) == 8: os.kill(os.getpid(), signal.SIGKILL)
    return real(self, request)
Aggregator.sum = sum
""",
    # When half of the third checkpoint is on disk.
    "in a checkpoint": """
real, calls = os.fsync, []
def fsync(file):
    name = os.readlink(f"/proc/self/fd/{file}")
    if name.endswith(".part") and "/checkpoint/state." in name:
        calls.append(file)
        if len(calls) == 3:
            os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    real(file)
os.fsync = fsync
""",
}


def test_a_run_that_was_killed_goes_on_from_the_last_whole_checkpoint(tmp_path, arrays):
    options = [*OPTIONS, "--dataset", arrays, "--checkpoint-every", "1", "--quiet"]
    processes = {}
    for name, patch in KILLED.items():
        code = f"import os, signal\n{patch}\nfrom codream_secure.cli.main import entry_point"
        command = [sys.executable, "-c", f"{code}\nentry_point()", "simulate", *options]
        processes[name] = subprocess.Popen([*command, "--out", str(tmp_path / name)])
    whole = begin(Config.from_options({**SHORT, "dataset": arrays}), tmp_path / "whole")
    metrics = measured(tmp_path / "whole")
    for name, process in processes.items():
        assert process.wait(120) == -signal.SIGKILL
        rows = measured(tmp_path / name)
        finished = {"in a round": 2, "in a checkpoint": 3}[name]
        assert rows == metrics[:finished]
        parts = go_on(tmp_path / name)
        assert (parts.resumed, figures(parts)) == (1, figures(whole))
        assert same(models(parts), models(whole))
        assert measured(tmp_path / name) == metrics


def test_ctrl_c_leaves_a_folder_that_can_be_read_and_gone_on_with(run, arrays, monkeypatch):
    options = [*OPTIONS, "--dataset", arrays, "--json"]
    real, calls = DreamGroup.synthesise, []

    def synthesise(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DreamGroup, "synthesise", synthesise)
        code, out, _ = run("simulate", *options, "--checkpoint-every", 2, "--out", "run")
    assert (code, json.loads(out)["rounds_finished"]) == (130, 2)
    code, out, _ = run("simulate", "--resume", "run", *options)
    assert (code, json.loads(out)["rounds_finished"]) == (0, 3)
    code, _, err = run("simulate", "--resume", "run")
    assert (code, "the run has finished" in err) == (2, True)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tiny, tmp_path, monkeypatch):
    config = tiny(rounds=3)
    whole = Simulation(config)
    list(whole.rounds())

    def full(name):
        raise OSError(28, "No space left on device")

    simulation = begin(config, tmp_path / "run", stop_after=1)
    folder = RunFolder.reopen(tmp_path / "run")
    with closing(folder), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            folder.checkpoint(simulation)
    parts = go_on(tmp_path / "run")
    assert same(models(parts), models(whole))


# -- differential privacy -----------------------------------------------------------------------


def private(tiny, **options):
    return tiny(
        **{"dp_eps": 8.0, "models": "mlp", "dp_steps": 6, "dp_warmup": 0.5, "rounds": 3, **options}
    )


def test_private_steps_are_on_record_before_they_are_taken(tiny, tmp_path, monkeypatch):
    record, real, seen = tmp_path / "run/checkpoint/charged", PrivateTrainer.step, []

    def step(trainer, x, y):
        real(trainer, x, y)
        seen.append((int(record.read_text()), trainer._budget.charged))

    monkeypatch.setattr(PrivateTrainer, "step", step)
    begin(private(tiny), tmp_path / "run")
    assert all(on_record >= taken for on_record, taken in seen)
    assert {on_record for on_record, _ in seen} == {3, 4, 5, 6}


@pytest.mark.parametrize("seed", [0, None])
def test_no_crash_gives_a_budget_back(tiny, tmp_path, monkeypatch, seed):
    """Three steps in the warm-up, one a round; round 2 is begun three times."""
    real, charged = PrivateTrainer.step, tmp_path / "run/checkpoint/charged"

    def crash(*_):
        raise CrashError

    begin(private(tiny, seed=seed), tmp_path / "run", stop_after=1)
    for on_record in ("5", "6"):
        with monkeypatch.context() as patch:
            patch.setattr(PrivateTrainer, "step", crash)
            with pytest.raises(CrashError):
                go_on(tmp_path / "run")
        assert charged.read_text() == on_record
    steps = []
    monkeypatch.setattr(PrivateTrainer, "step", lambda *a: (steps.append(a), real(*a)))
    simulation = go_on(tmp_path / "run")
    assert steps == []
    assert len(simulation.observer.history) == 3
    assert {m.client.learner.local_steps for m in simulation.federation.members.values()} == {4}
    assert {m.twin.local_steps for m in simulation.federation.members.values()} == {4}
    guarantee = simulation.guarantee()
    assert guarantee.steps == 6
    assert 7.4 < guarantee.epsilon <= 8.0
    assert [release.name for release in guarantee.releases] == ["local training", "class means"]
    assert summarise(simulation).privacy.steps == 6


def test_noise_is_fresh_after_a_resume_unless_it_is_seeded(tiny, tmp_path):
    begin(private(tiny, seed=None), tmp_path / "run", stop_after=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    first, second = go_on(tmp_path / "run"), go_on(tmp_path / "copy")
    assert not same(models(first), models(second))
    assert first.guarantee().noise_source == "os"


# -- what is in it ------------------------------------------------------------------------------


@pytest.mark.parametrize("threat_model", ["semi-honest", "malicious"])
def test_no_key_and_no_secret_is_in_a_checkpoint(tiny, tmp_path, monkeypatch, threat_model):
    drawn, urandom, randbits = [], os.urandom, secrets.randbits

    def tapped(size):
        drawn.append(urandom(size))
        return drawn[-1]

    def tapped_bits(bits):
        number = randbits(bits)
        drawn.extend(number.to_bytes(bits // 8 + 1, way)[:16] for way in ("big", "little"))
        return number

    monkeypatch.setattr(os, "urandom", tapped)
    monkeypatch.setattr(secrets, "randbits", tapped_bits)
    config = private(tiny, seed=None, rounds=2, threat_model=threat_model, key_steps=5)
    begin(config, tmp_path / "run", stop_after=1)
    data = (tmp_path / "run/checkpoint/state").read_bytes()
    state = decode(data)
    answered = [state.members[c].client.answered for c in state.members]
    assert all(len(digest) == 32 for digests in answered for digest in digests)
    assert state.members[0].client.learner.noise is None
    assert state.groups[0].aggregator.attendance.keys > 0
    keys = [secret for secret in drawn if len(secret) >= 16]
    assert len(keys) > 4 * 4
    for secret in keys:
        for form in (secret, secret[:16], base64.b64encode(secret)[:20], secret.hex().encode()):
            assert form not in data
        assert all(secret not in digests for digests in answered)


def test_a_checkpoint_is_for_its_owner_alone(tiny, tmp_path):
    begin(tiny(rounds=2), tmp_path / "run", stop_after=1)
    home = tmp_path / "run/checkpoint"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}
