"""Event files for TensorBoard."""

import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TINY = [
    "simulate",
    *("--clients", "4", "--rounds", "1", "--models", "linear", "--seed", "0"),
    *("--dreams", "4", "--dream-steps", "1", "--kd-epochs", "1"),
]


def test_event_files_for_tensorboard_hold_every_round(run, tmp_path):
    arguments = [*TINY, "--rounds", "2", "--out", "first", "--quiet"]
    assert run(*arguments, "--tensorboard") == (0, "", "")
    events = EventAccumulator(str(tmp_path / "first/tensorboard")).Reload()
    assert {"accuracy/clients", "accuracy/server", "cost/bytes_up"} <= set(events.Tags()["scalars"])
    assert [point.step for point in events.Scalars("accuracy/clients")] == [1, 2]


def test_without_tensorboard_the_option_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    code, out, err = run(*TINY, "--out", "first", "--tensorboard")
    assert (code, out) == (2, "")
    assert "pip install 'codream-secure[tensorboard]'" in err
