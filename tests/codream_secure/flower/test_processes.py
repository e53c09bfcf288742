"""Flower's own SuperLink and SuperNodes, as processes on the loopback interface.

All of it is for `make integration`; `make test` runs a short sum (test_sums_processes.py).
"""

import contextlib
import hashlib
import json
import threading
import time

import msgspec
import numpy as np
import pytest
from app_processes import QuickLocal, restart_node

from codream_secure.config.settings import Config
from codream_secure.data.datasets import load_dataset
from codream_secure.errors import UserError
from codream_secure.federation.simulation import Simulation
from codream_secure.sites.journal import StepRecord
from codream_secure.sites.wire import protocol_step

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

SMALL = {"warmup_epochs": "1", "kd_epochs": "1", "dreams": "8", "key_steps": "6"}


def local(out, *, clients=3, rounds=2, more=None, **options):
    asked = {
        "clients": clients,
        "rounds": rounds,
        "dream_steps": 2,
        "dataset": "digits",
        "models": "linear",
        "threat_model": "semi-honest",
        "insecure": False,
        "timeout": 900.0,
        "more": SMALL | (more or {}),
        "out": out,
    }
    return QuickLocal(**(asked | options))


def digests_of_a_simulation(summary):
    simulation = Simulation(Config.from_options(summary["config"]), compare_independent=False)
    list(simulation.rounds())
    return [hashlib.sha256(dream.pixels.tobytes()).hexdigest() for dream in simulation.dreams]


def processes_gone(running):
    return all(process.poll() is not None for process in running)


def test_a_run_over_tls_gives_the_dreams_of_a_simulation(tmp_path):
    # Every message starts a process: one that need not load scikit-learn for its digits, which
    # takes as long as PyTorch, and few of them.
    data = load_dataset("digits", tmp_path)
    arrays = {
        "x_train": data.x_train[:200, 0],
        "y_train": data.y_train[:200],
        "x_test": data.x_test[:, 0],
        "y_test": data.y_test,
    }
    np.savez(tmp_path / "images.npz", **arrays)
    dataset = str(tmp_path / "images.npz")
    with local(tmp_path / "run", rounds=1, dream_steps=1, dataset=dataset) as running:
        started = list(running.processes.values())
        summary = running.run()
        started += list(running.processes.values())
    assert processes_gone(started)
    assert [one["dreams"] for one in summary["rounds"]] == digests_of_a_simulation(summary)
    assert summary["flower"]["messages"] <= 20 * 3
    assert summary["aborted_steps"] == 0
    assert summary["refused"] == {}


def test_five_sites_in_the_malicious_model(tmp_path):
    with local(tmp_path / "run", clients=5, threat_model="malicious") as running:
        summary = running.run()
    assert [one["dreams"] for one in summary["rounds"]] == digests_of_a_simulation(summary)


def test_a_server_that_is_killed_in_round_2_goes_on_and_ends_as_a_simulation(tmp_path):
    """SIGKILL while sites are told of the second round's labels, after its last sum of dreams.

    What a kill in the middle of a sum does is tested without processes.
    """
    out = tmp_path / "run"
    last = out / "run" / "state" / f"step-{protocol_step(3):010}"
    killed, over = [], threading.Event()

    def strike():
        while not killed and not over.wait(0.05):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                if msgspec.msgpack.decode(last.read_bytes(), type=StepRecord).totals is not None:
                    running.kill_server()
                    killed.append(True)
                    running.kill("run")

    with local(out, rounds=2, dream_steps=1, timeout=1800.0) as running:
        striker = threading.Thread(target=strike)
        striker.start()
        try:
            with pytest.raises(UserError, match="did not come to its end"):
                running.run()
        finally:
            over.set()
            striker.join()
        assert killed
        summary = running.run(resume=True)
    assert [one["dreams"] for one in summary["rounds"]] == digests_of_a_simulation(summary)
    assert summary["aborted_steps"] == 0
    assert [one["learned"] for one in summary["rounds"]] == [3, 3]
    assert "going on after round 1" in (out / "run-2.log").read_text(errors="replace")


def test_a_node_that_is_killed_comes_back(tmp_path):
    """SIGKILL in the first round; its process starts again from its folder.

    The sum that it was asked for waits until Flower says that it is gone, which is about when it is
    let in again: it may be back for the rest of the same round. What a kill before each message
    does is tested with sums alone, and without processes.
    """
    with local(tmp_path / "run", clients=4, rounds=3, dream_steps=1, timeout=1800.0) as running:

        def strike():
            while not (tmp_path / "run/run/state/step-0000000000").exists():
                time.sleep(0.05)
            running.kill("node-2")
            restart_node(running, 2)

        striker = threading.Thread(target=strike)
        striker.start()
        try:
            summary = running.run()
        finally:
            striker.join()
    assert summary["rounds"][-1]["learned"] == 4
    log = (tmp_path / "run" / "run.log").read_text(errors="replace")
    assert "site 2 did not answer" in log
    assert "Traceback" not in log


def test_a_wrong_node_key_is_not_let_in(tmp_path):
    with local(tmp_path / "run", clients=4) as running:
        running.kill("node-3")
        (tmp_path / "run/keys/3.node").write_bytes((tmp_path / "run/keys/0.private").read_bytes())
        running.start_node(3)
        summary = running.run()
    assert all(one["learned"] == 3 for one in summary["rounds"])
    assert json.loads((tmp_path / "run/run/summary.json").read_text()) == summary
