"""A run that is interrupted and gone on with is the run that was never interrupted."""

import base64
import hashlib
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import closing

import msgspec
import numpy as np
import pytest
import torch
from safetensors import torch as safetensors

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.requests import VERSION, DreamRequest
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.config.settings import Config
from codream_secure.dreaming.group import DreamGroup
from codream_secure.errors import StepAborted, UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.learning.learner import BatchStream
from codream_secure.privacy.dpsgd import PrivateTrainer
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.summary import progress_of, summarise
from codream_secure.storage.checkpoint import FORMAT, decode, encode
from protocols.driver import BatchSession


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Return a file of 80 training and 20 test images of 4 classes."""
    path = tmp_path_factory.mktemp("arrays") / "data.npz"
    draw = np.random.default_rng(0)
    images = {
        f"x_{p}": draw.integers(0, 256, (k, 8, 8), dtype=np.uint8)
        for p, k in (("train", 80), ("test", 20))
    }
    np.savez(path, **images, y_train=np.arange(80) % 4, y_test=np.arange(20) % 4)
    return str(path)


# What an interruption costs shows here and nowhere else in a summary.
OF_FRESH_KEYS = ("advertise_keys", "share_keys")


class CrashError(Exception):
    """The process ends here."""


def play(simulation, folder, stop_after=None):
    """Run the rounds that are left as the command line does, without its pictures."""
    with closing(folder):
        for measurement in simulation.rounds():
            folder.append(measurement, progress_of(simulation))
            folder.checkpoint(simulation)
            if measurement.round == stop_after:
                break
    return simulation


def begin(config, path, stop_after=None, every=1):
    simulation = Simulation(config)
    folder = RunFolder.create(path, checkpoint_every=every)
    folder.start(simulation)
    return play(simulation, folder, stop_after)


def go_on(path, stop_after=None):
    folder = RunFolder.reopen(path)
    with closing(folder):
        simulation = Simulation(folder.configuration({}))
        folder.restore(simulation)
        return play(simulation, folder, stop_after)


def models(simulation):
    twins = {f"twin-{c}": m.state_dict() for c, m in simulation.federation.twin_models().items()}
    return {**simulation._weights(), **twins}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name][key], second[name][key]) for name in first for key in first[name]
    )


def measured(run):
    """Return the rows of metrics.jsonl without bytes of fresh keys and without seconds."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in OF_THIS_PROCESS} for row in rows]


def dreams_of(simulation):
    return [(d.pixels.tobytes(), d.targets.numpy().tobytes()) for d in simulation.dreams]


def figures(simulation):
    """Return the summary without what an interruption changes."""
    summary = summarise(simulation)
    for name in ("seconds", "resumed"):
        del summary[name]
    for name in (
        "per_client_up",
        "per_client_down",
        "equal_at_parameters",
        "overhead",
        "by_client",
        "could_save",
    ):
        del summary["bytes"][name]
    for phase in OF_FRESH_KEYS:
        del summary["bytes"]["by_phase"][phase]
    return summary


OF_THIS_PROCESS = {"bytes_up", "bytes_down", "bytes_by_phase", "seconds"}

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


@pytest.mark.parametrize("name", METHODS)
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


def request(step):
    return DreamRequest(
        version=VERSION,
        round=1,
        batch=0,
        dream_step=step,
        shape=(2, 1, 4, 4),
        dreams=bytes(32),
        bits=4,
        clip=1.0,
        entropy_weight=1.0,
        bn_weight=0.0,
        balance_weight=0.0,
    )


def aggregator(*, secure, roster=tuple(range(5)), **changes):
    """Clients whose answer is a bit of their own, so that a sum names who is in it."""
    clients = {
        c: lambda _, __, c=c: {"gradient": np.full(32, 1 << (c % 4), np.uint32)} for c in roster
    }
    settings = AggregationSettings(roster=roster, seed=1, **changes)
    meters = Meters(ByteLedger(roster))
    if secure:
        return SecureAggregator(clients, settings, meters, session=os.urandom(32))
    return PlainAggregator(clients, settings, meters)


def outcome(sums, step):
    try:
        total = sums.sum(request(step))
    except StepAborted:
        return None
    return total.count, total.totals["gradient"].tolist()


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("key_steps", [1, 4, 40])
@pytest.mark.parametrize(
    "model", [("semi-honest", False), ("malicious", False), ("malicious", True)], ids=str
)
def test_the_same_steps_fail_when_every_step_has_a_process_of_its_own(secure, key_steps, model):
    changes = {"threat_model": model[0], "rejoin": model[1], "key_steps": key_steps}
    changes |= {"dropout": 0.25, "expected_steps": 11}
    whole, part = aggregator(secure=secure, **changes), aggregator(secure=secure, **changes)
    expected, found = [], []
    for step in range(12):
        expected.append(outcome(whole, step))
        found.append(outcome(part, step))
        state = part.state()
        assert state == whole.state()
        part = aggregator(secure=secure, **changes)
        part.restore(state)
    assert found == expected
    assert None in expected
    assert part.round_trips_per_step == whole.round_trips_per_step


def test_only_those_that_held_keys_take_part_in_the_exchange_that_replaces_them():
    sent = []
    session = BatchSession(
        bytes(32), tuple(range(6)), 4, tap=lambda phase, way, client, _: sent.append((way, client))
    )
    session.replace(3, (0, 1, 3, 5))
    assert session.candidates == (0, 1, 3, 5)
    assert session.keys_left == 3
    assert {client for _, client in sent} == {0, 1, 3, 5}
    session.replace(2, (1, 2, 3, 4), ahead=True)
    assert session.candidates == (0, 1, 3, 5)
    session.prepare(2, ())
    assert session.candidates == (1, 2, 3, 4)


def test_a_stream_of_batches_goes_on_inside_an_epoch():
    def stream(seed):
        x = torch.arange(10)
        return BatchStream(x, x, 3, torch.Generator().manual_seed(seed))

    whole, part = stream(7), stream(7)
    expected = [whole.next()[0].tolist() for _ in range(12)]
    for epoch in range(4):
        assert len({x for batch in expected[3 * epoch : 3 * epoch + 3] for x in batch}) == 9
    found = []
    for number in range(12):
        found.append(part.next()[0].tolist())
        state, part = part.state(), stream(number)
        part.restore(state)
    assert found == expected


# -- processes that end where they should not ---------------------------------------------------

TINY = {"clients": 4, "rounds": 3, "models": "mlp", "seed": 0, "dreams": 4, "dream_steps": 2}
TINY |= {"kd_epochs": 1, "warmup_epochs": 1}
OPTIONS = [part for k, v in TINY.items() for part in (f"--{k.replace('_', '-')}", str(v))]

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
    if os.readlink(f"/proc/self/fd/{file}").endswith("state.new"):
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
    whole = begin(Config.from_options({**TINY, "dataset": arrays}), tmp_path / "whole")
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
    assert 7.5 < guarantee.epsilon <= 8.0
    assert [release.name for release in guarantee.releases] == ["local training", "class means"]
    assert summarise(simulation)["privacy"]["steps"] == 6


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


def test_a_checkpoint_does_not_grow_with_dreams_but_for_32_bytes_a_request(tiny):
    simulation = Simulation(tiny(rounds=6, buffer=1, dreams=64))
    sizes = [len(encode(simulation.state(checkpoint_every=1))) for _ in simulation.rounds()]
    assert sizes[-1] - sizes[1] < 4 * 2048
    assert all(len(g.buffer) == 64 for g in simulation.groups)


# -- bad input ----------------------------------------------------------------------------------


def tampered(data, change):
    """Return a checkpoint whose plain values and tensors were changed, with a digest that fits."""
    tensors = safetensors.load(data[32:])
    plain = json.loads(tensors.pop("state").numpy().tobytes())
    change(plain, tensors)
    text = json.dumps(plain).encode()
    tensors["state"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    body = safetensors.save(tensors)
    return hashlib.sha256(body).digest() + body


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, arrays):
    """Return where a private run's folder is, interrupted after round 1 of 3, and its data."""
    home = tmp_path_factory.mktemp("interrupted")
    shutil.copy(arrays, home / "data.npz")
    options = {**TINY, "dp_eps": 8.0, "dp_steps": 4, "dp_warmup": 0.5}
    del options["warmup_epochs"]
    config = Config.from_options({**options, "dataset": str(home / "data.npz")})
    begin(config, home / "run", stop_after=1)
    return home


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def edit_checkpoint(change):
    return lambda run: rewrite(run / "checkpoint/state", lambda data: tampered(data, change))


def drop_tensor(plain, tensors):
    tensors.pop("0")


def other_shape(plain, tensors):
    tensors["0"] = tensors["0"].repeat(2, *[1] * (tensors["0"].dim() - 1))


def change_data(run):
    arrays = dict(np.load(run.parent / "data.npz"))
    arrays["y_test"] = arrays["y_test"][::-1]
    np.savez(run.parent / "data.npz", **arrays)


def pretend_finished(run):
    (run / "summary.json").write_text('{"rounds": 3, "rounds_finished": 3}')


def flip(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


BAD = {
    "no folder": (shutil.rmtree, [], "no such folder"),
    "a file": (lambda r: (shutil.rmtree(r), r.touch()), [], "no such folder"),
    "no run": (lambda r: (r / "config.toml").unlink(), [], "not the folder of a run"),
    "no checkpoint": (lambda r: (r / "checkpoint/state").unlink(), [], "has no checkpoint"),
    "finished": (pretend_finished, [], "the run has finished"),
    "more rounds": (None, ["--rounds", 4], "--rounds 4 contradicts"),
    "another seed": (None, ["--seed", 1], "--seed 1 contradicts"),
    "another budget": (None, ["--dp-eps", 9], "--dp-eps 9.0 contradicts"),
    "another folder": (None, ["--out", "other"], "--out cannot be used with --resume"),
    "no interval": (None, ["--checkpoint-every", 0], "--checkpoint-every"),
    "edited config": (
        lambda r: rewrite(r / "config.toml", lambda t: t.replace(b"rounds = 3", b"rounds = 9")),
        [],
        "is not the configuration",
    ),
    "other data": (change_data, [], "has changed since the checkpoint"),
    "cut off": (lambda r: rewrite(r / "checkpoint/state", lambda d: d[:-1]), [], "is damaged"),
    "empty": (lambda r: rewrite(r / "checkpoint/state", lambda _: b""), [], "is damaged"),
    "a flipped bit": (lambda r: rewrite(r / "checkpoint/state", flip), [], "is damaged"),
    "not safetensors": (
        lambda r: rewrite(
            r / "checkpoint/state", lambda _: hashlib.sha256(b"x" * 64).digest() + b"x" * 64
        ),
        [],
        "is damaged",
    ),
    "another format": (
        edit_checkpoint(lambda p, _: p.update(format=FORMAT + 1)),
        [],
        "another version",
    ),
    "unknown field": (edit_checkpoint(lambda p, _: p.update(more=1)), [], "unknown field"),
    "wrong type": (edit_checkpoint(lambda p, _: p.update(resumed="1")), [], "is damaged"),
    "missing tensor": (edit_checkpoint(drop_tensor), [], "is damaged"),
    "spare tensor": (edit_checkpoint(lambda _, t: t.update(x=torch.ones(1))), [], "is damaged"),
    "another shape": (edit_checkpoint(other_shape), [], "is damaged"),
    "another round": (
        edit_checkpoint(lambda p, _: p["history"][0].update(round=2)),
        [],
        "rounds are missing",
    ),
    "another client": (edit_checkpoint(lambda p, _: p["members"].pop("3")), [], "is damaged"),
    "unseeded noise": (
        edit_checkpoint(lambda p, _: p["members"]["0"]["twin"].update(noise=None)),
        [],
        "is damaged",
    ),
    "lost rows": (lambda r: rewrite(r / "metrics.jsonl", lambda _: b""), [], "is damaged"),
    "torn row": (lambda r: rewrite(r / "metrics.jsonl", lambda d: d[:-9]), [], "is damaged"),
    "no record": (lambda r: (r / "checkpoint/charged").unlink(), [], "is damaged"),
    "no number": (lambda r: rewrite(r / "checkpoint/charged", lambda _: b"-1"), [], "is damaged"),
    "fewer steps": (lambda r: rewrite(r / "checkpoint/charged", lambda _: b"1"), [], "is damaged"),
    "more steps": (lambda r: rewrite(r / "checkpoint/charged", lambda _: b"5"), [], "is damaged"),
}


def content(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line_and_nothing_is_overwritten(run, interrupted, tmp_path, name):
    spoil, arguments, says = BAD[name]
    folder = tmp_path / "home/run"
    shutil.copytree(interrupted, folder.parent)
    for path in (folder / "config.toml", folder / "checkpoint/state"):
        move = (str(interrupted).encode(), str(folder.parent).encode())
        if path.suffix == ".toml":
            rewrite(path, lambda text, move=move: text.replace(*move))
        else:
            where = str(folder.parent / "data.npz")
            edit_checkpoint(lambda p, _, where=where: p["config"].update(dataset=where))(folder)
    if spoil:
        spoil(folder)
    before = content(folder)
    code, out, err = run("simulate", "--resume", folder, *arguments, "--quiet")
    assert code == 2
    assert out == ""
    assert says in err
    assert len([line for line in err.splitlines() if line.lower().startswith("error")]) == 1
    assert "Traceback" not in err
    assert content(folder) == before


def test_a_folder_that_another_process_writes_to_is_left_alone(interrupted):
    with (
        closing(RunFolder.reopen(interrupted / "run")),
        pytest.raises(UserError, match="in use by another process"),
    ):
        RunFolder.reopen(interrupted / "run")


def test_options_that_agree_may_be_repeated(run, interrupted, tmp_path):
    shutil.copytree(interrupted / "run", tmp_path / "run")
    code, out, err = run(
        *("simulate", "--resume", "run", "--norm", "auto", "--clients", 4, "--json"),
        *("--checkpoint-every", 2),
    )
    assert code == 0, err
    assert json.loads(out)["resumed"] == 1
    state = decode((tmp_path / "run/checkpoint/state").read_bytes())
    assert (state.checkpoint_every, len(state.history)) == (2, 2)


def test_a_state_survives_its_bytes_and_a_second_encoding_is_the_same(tiny):
    simulation = Simulation(tiny(rounds=1, models="resnet8", width=4))
    list(simulation.rounds())
    data = encode(simulation.state(checkpoint_every=1))
    again = encode(decode(data))
    assert again == data
    with pytest.raises(TypeError, match="cannot be stored"):
        encode(msgspec.structs.replace(decode(data), history=[{"round": object()}]))
