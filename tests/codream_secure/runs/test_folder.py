"""Going on in a run folder: what does not fit is refused in one line, and nothing is changed."""

import hashlib
import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from interrupted_runs import (
    SHORT,
    begin,
    rewrite,
)
from safetensors import torch as safetensors

from codream_secure.config.settings import Config
from codream_secure.errors import UserError
from codream_secure.runs.folder import RunFolder
from codream_secure.storage.checkpoint import FORMAT, decode


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
    options = {**SHORT, "dp_eps": 8.0, "dp_steps": 4, "dp_warmup": 0.5}
    del options["warmup_epochs"]
    config = Config.from_options({**options, "dataset": str(home / "data.npz")})
    begin(config, home / "run", stop_after=1)
    return home


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
    (run / "models").mkdir()
    (run / "report.html").touch()


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
