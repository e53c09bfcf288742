"""`codream-secure simulate`: what it prints and leaves, and what it says of bad input."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from codream_secure.cli import simulate
from codream_secure.runs.formats import Summary

TINY = [
    "simulate",
    *("--clients", "4", "--rounds", "1", "--models", "linear", "--seed", "0"),
    *("--dreams", "4", "--dream-steps", "1", "--kd-epochs", "1", "--samples-per-client", "40"),
]

SUMMARY_KEYS = set(Summary.__struct_fields__) - {"step_size_factor"}
PHASES = [
    "advertise_keys",
    "share_keys",
    "broadcast",
    "masked_input",
    "consistency",
    "unmasking",
    "labels",
    "class_means",
]


def test_json_is_the_summary_and_nothing_else(run, tmp_path):
    code, out, err = run(*TINY, "--json", "--out", "run")
    summary = json.loads(out)
    assert code == 0
    assert err == ""
    assert summary.keys() == SUMMARY_KEYS
    assert summary["accuracy"].keys() == {
        "independent_mean",
        "clients_mean",
        "clients_std",
        "server",
        "independent_personal_mean",
        "personal_mean",
    }
    assert list(summary["bytes"]["by_phase"]) == PHASES
    assert summary["bytes"]["per_client_up"] == sum(
        phase["up"] for phase in summary["bytes"]["by_phase"].values()
    )
    assert summary["seconds"].keys() >= {
        "total",
        "local_training",
        "dreaming",
        "secure_aggregation",
        "acquisition",
    }
    assert summary["privacy"] is None
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary


@pytest.mark.pictures
def test_the_run_folder_holds_what_is_needed_to_look_and_to_rerun(run, tmp_path):
    # A model with convolutions, which are trained in a layout that files do not have.
    model = ("--models", "resnet8", "--samples-per-client", "60")
    assert run(*TINY, *model, "--out", "first", "--quiet") == (0, "", "")
    folder = tmp_path / "first"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        ".lock",
        "config.toml",
        "metrics.jsonl",
        "summary.json",
        "dreams.png",
        "accuracy.png",
        "labels.png",
        "report.html",
        "models",
    }
    for picture in ("dreams.png", "accuracy.png", "labels.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "models").iterdir())) == 5
    assert load_file(folder / "models/server/weights.safetensors")
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == [1]

    code, *_ = run("simulate", "--config", "first/config.toml", "--out", "second", "--quiet")
    assert code == 0
    first, second = (
        load_file(tmp_path / f / "models/client-0/weights.safetensors") for f in ("first", "second")
    )
    assert all((first[name] == second[name]).all() for name in first)


def test_the_default_folder_is_named_after_time_and_run(run, tmp_path):
    code, out, _ = run(*TINY)
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0
    assert folder.name.endswith("-codream-digits")
    assert f"written to runs/{folder.name}" in out.replace("\n", "")


def test_the_table_marks_accuracy_as_the_observers(run):
    _, out, _ = run(*TINY, "--out", "run")
    assert "test accuracy (observer's)" in out
    assert "independent training" in out
    assert "FedAvg" in out


def test_a_seeded_private_run_is_labelled_an_experiment(run):
    code, out, _ = run(*TINY, "--dp-eps", 8, "--dp-steps", 3, "--out", "run")
    assert code == 0
    assert "seeded" in out
    assert "experiment only" in out


@pytest.mark.parametrize(("batch", "told"), [((), False), (("--dp-batch", 20), True)])
def test_an_option_that_leads_to_another_method_than_the_default_is_told_of(
    run, monkeypatch, batch, told
):
    monkeypatch.setattr(simulate, "_simulate", lambda *_, **__: 0)
    code, _, err = run("simulate", "--dp-eps", 8, *batch)
    assert code == 0
    assert ("--method codream is used" in err) == told


def test_a_private_run_reports_its_guarantee(run):
    _, out, _ = run(
        *(a for a in TINY if a not in ("--seed", "0")),
        "--dp-eps",
        8,
        "--dp-steps",
        3,
        "--json",
        "--out",
        "run",
    )
    privacy = json.loads(out)["privacy"]
    assert privacy.keys() >= {
        "unit",
        "adjacency",
        "epsilon",
        "delta",
        "accountant",
        "noise_source",
        "steps",
    }
    assert 7.4 < privacy["epsilon"] <= 8
    assert privacy["rdp_epsilon"] >= privacy["epsilon"]
    assert (privacy["noise_source"], privacy["steps"], privacy["delta"]) == ("os", 3, 1e-5)


def test_heterogeneous_models_have_no_fedavg_figure(run):
    _, out, _ = run(*TINY, "--models", "linear,mlp", "--json", "--out", "run")
    assert json.loads(out)["bytes"]["fedavg_per_client_up"] is None


def test_a_folder_of_images_and_a_model_of_one_s_own(run, tmp_path):
    for part, count in (("train", 12), ("test", 2)):
        for label in ("circle", "square"):
            (tmp_path / "shapes" / part / label).mkdir(parents=True)
            for i in range(count):
                path = tmp_path / "shapes" / part / label / f"{i}.png"
                Image.new("RGB", (12, 10), (20 * i, 0, 200)).save(path)
    (tmp_path / "shapes_module.py").write_text(
        "from torch import nn\n"
        "def small(spec):\n"
        "    pixels = spec.channels * spec.height * spec.width\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, spec.classes))\n"
    )
    code, out, _ = run(
        *(
            *TINY,
            "--dataset",
            "shapes",
            "--image-size",
            "9",
            "--models",
            "linear,shapes_module:small",
        ),
        *("--partition", "shards:2", "--samples-per-client", "5", "--json", "--out", "run"),
    )
    summary = json.loads(out)
    assert code == 0
    assert (summary["dataset"], summary["models"][1]) == ("shapes", "shapes_module:small")
    model = load_file(tmp_path / "run/models/client-1/weights.safetensors")
    assert model["1.weight"].shape == (2, 3 * 9 * 9)


def test_the_command_line_wins_over_the_file(run, tmp_path):
    (tmp_path / "run.toml").write_text("rounds = 1\nclients = 7\nbits = 3\n")
    _, out, _ = run(*TINY, "--config", "run.toml", "--bits", 2, "--json", "--out", "run")
    summary = json.loads(out)
    assert (summary["clients"], summary["dreaming"]["bits"]) == (4, 2)
    written = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert written["bits"] == 2


BAD = [
    (["--clients", 2], "at least 3 clients"),
    (["--clients", 1], "--clients must be from 2 to"),
    (["--threshold", 2], "--threshold must be 3 to 4"),
    (["--threshold", 5], "--threshold must be 3 to 4"),
    (["--clients", 2000], "too few"),
    (["--dataset", "imagenet"], "unknown dataset 'imagenet'"),
    (["--dataset", "missing.npz"], "missing.npz"),
    (["--dataset", "bad.npz"], "bad.npz"),
    (["--models", "resnet9000"], "resnet9000"),
    (["--partition", "sorted"], "sorted"),
    (["--partition", "shards:2", "--clients", 3], "covers 6 of 10 classes"),
    (["--partition", "dirichlet-labels:0.01", "--clients", 30], "use a larger ALPHA"),
    (["--samples-per-client", 400], "use at most 349 samples per client"),
    (["--samples-per-client", 3], "every client needs at least 4"),
    (["--image-size", 16], "digits has its own"),
    (["--dataset", "full"], "full: it needs a folder for every class"),
    (["--models", "linear,nowhere:make"], "model nowhere:make: no module nowhere"),
    (["--models", "json:loads"], "model json:loads raised TypeError"),
    (["--models", "json:loads", "--width", 8], "model json:loads has no width"),
    (["--partition", "dirichlet:-1"], "dirichlet"),
    (["--dp-eps", 0], "--dp-eps must be from 0.000001 to 1000"),
    (["--dp-eps", -3], "--dp-eps must be from 0.000001 to 1000"),
    (["--dp-eps", "inf"], "--dp-eps must be a finite number"),
    (["--dp-eps", "nan"], "--dp-eps must be a finite number"),
    (["--dp-eps", 8, "--dp-delta", 1], "--dp-delta must be above 0 and below 1, not 1.0"),
    (["--dp-eps", 8, "--norm", "batch"], "--norm batch cannot be used with --dp-eps"),
    (["--dp-eps", 8, "--bn-weight", 1], "--bn-weight cannot be used with --dp-eps"),
    (["--dp-eps", 8, "--warmup-epochs", 3], "--warmup-epochs cannot be used with --dp-eps"),
    (["--dp-eps", 8, "--validation", 0.2], "--validation cannot be used with --dp-eps"),
    (["--dp-clip", 1], "--dp-clip needs --dp-eps"),
    (["--dp-eps", 8, "--dp-batch", 9999], "--dp-batch can be at most 40"),
    (["--width", 10**8], "--width must be from 1 to 4096, not 100000000"),
    (
        ["--labels", "logits", "--label-clip", 1e9],
        "--label-clip must be above 0 and at most 1000000, not 1000000000.0",
    ),
    (["--dropout", 1.5], "--dropout must be from 0 to 1, not 1.5"),
    (["--bits", 0], "--bits must be from 1 to 16, not 0"),
    (["--out", "full"], "full is not empty"),
    (["--out", "file/run"], "cannot write"),
    (["--config", "unknown.toml"], "unknown setting 'colour'"),
    (["--config", "typed.toml"], "--clients must be a whole number, not 'ten'"),
    (["--config", "broken.toml"], "broken.toml is not a TOML file"),
    (["--config", "nowhere.toml"], "cannot read nowhere.toml"),
    (["--device", "tpu"], "tpu"),
    (["--method", "magic"], "magic"),
    (["--no-such-option"], "no option --no-such-option; see"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_gets_one_clear_line_and_code_2(run, tmp_path, arguments, says):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thing").touch()
    (tmp_path / "file").touch()
    (tmp_path / "unknown.toml").write_text('colour = "red"\n')
    (tmp_path / "typed.toml").write_text('clients = "ten"\n')
    (tmp_path / "broken.toml").write_text("clients = = 3\n")
    np.savez(tmp_path / "bad.npz", x_train=np.zeros((3, 8, 8)))
    given = TINY if "--config" not in arguments else ["simulate"]
    code, out, err = run(*given, *arguments)
    assert code == 2
    assert out == ""
    assert says in err
    assert "Traceback" not in err
    message = [line for line in err.splitlines() if line.lower().startswith("error")]
    assert len(message) == 1


def test_dropouts_that_leave_no_dreams_end_with_code_3_and_a_summary(run):
    code, out, _ = run(*TINY, "--dropout", 1, "--json", "--out", "run")
    summary = json.loads(out)
    assert code == 3
    assert summary["protocol"]["aborted_steps"] == summary["protocol"]["steps"] > 0
    assert summary["accuracy"]["clients_mean"] > 0


def test_interrupting_leaves_a_readable_folder_and_code_130(tmp_path):
    command = [sys.executable, "-m", "codream_secure", *TINY, "--out", str(tmp_path / "run")]
    command += ["--rounds", "500", "--quiet"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env=os.environ | {"COLUMNS": "100"},
        # Who runs the tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        metrics.exists() and metrics.read_text().count("\n")
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert 1 <= summary["rounds_finished"] < 500
    assert summary["accuracy"]["clients_mean"] > 0
    assert len(list((tmp_path / "run/models").iterdir())) == 5


def test_a_malicious_server_costs_one_more_round_trip_and_the_summary_says_so(run):
    _, out, _ = run(*TINY, "--json", "--out", "curious")
    curious = json.loads(out)
    _, out, _ = run(*TINY, "--json", "--threat-model", "malicious", "--out", "lying")
    lying = json.loads(out)
    found = [one["protocol"] for one in (curious, lying)]
    assert [one["threat_model"] for one in found] == ["semi-honest", "malicious"]
    # Two steps in one key batch: 2 + 2/M and 3 + 3/M.
    assert [one["round_trips_per_step"] for one in found] == [3, 4.5]
    assert [one["colluders"] for one in found] == [2, 1]
    assert curious["bytes"]["by_phase"]["consistency"] == {"up": 0, "down": 0}
    assert lying["bytes"]["by_phase"]["consistency"]["up"] > 0
    assert lying["accuracy"] == curious["accuracy"]


def test_a_tenth_of_the_clients_failing_leaves_most_steps_under_a_lying_server(run):
    _, out, _ = run(
        *(*TINY, "--clients", "10", "--dream-steps", "30", "--json", "--out", "run"),
        *("--threat-model", "malicious", "--dropout", "0.1"),
    )
    summary = json.loads(out)
    assert summary["protocol"]["steps"] >= 31
    assert summary["protocol"]["completed_share"] >= 0.7


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "codream-fast", "--latent", "8", "--meta", "fomaml"),
        ("--adaptive", "kl", "--local-steps", "2"),
        ("--weights", "examples"),
        ("--no-collaboration",),
    ],
    ids=str,
)
def test_config_toml_gives_the_same_run_again(run, options, tmp_path):
    _, out, _ = run(*TINY, *options, "--json", "--out", "first")
    code, again, err = run("simulate", "--config", "first/config.toml", "--json", "--out", "second")
    assert code == 0, err
    first, second = json.loads(out), json.loads(again)
    assert first["accuracy"] == second["accuracy"]
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
