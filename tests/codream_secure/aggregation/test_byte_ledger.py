import json

import pytest

from codream_secure.aggregation.byte_ledger import PHASES, ByteLedger
from codream_secure.federation.simulation import Simulation


def filled():
    ledger = ByteLedger((3, 7))
    ledger.record("advertise_keys", "up", 10, client=3)
    ledger.begin_round(1)
    ledger.record("broadcast", "down", 100, client=3, payload=90)
    ledger.record("broadcast", "down", 100, client=7, payload=90)
    ledger.begin_round(2)
    ledger.record("masked_input", "up", 50, client=7, payload=40)
    ledger.count_avoidable("sent twice", "down", 30)
    return ledger


def test_bytes_are_counted_by_round_phase_direction_and_client():
    ledger = filled()
    assert ledger.by_client() == {3: {"up": 10, "down": 100}, 7: {"up": 50, "down": 100}}
    assert list(ledger.by_round()) == [0, 1, 2]
    assert ledger.by_round()[1]["broadcast"] == {"up": 0, "down": 100}
    assert ledger.by_round()[2]["masked_input"] == {"up": 25, "down": 0}
    assert list(ledger.by_phase()) == list(PHASES)
    assert ledger.per_client("up") == 30
    assert ledger.per_client("down") == 100


def test_overhead_is_what_is_not_payload_and_avoidable_bytes_stand_apart():
    ledger = filled()
    assert ledger.overhead() == {"up": 10, "down": 10}
    assert ledger.avoidable() == {"sent twice": {"up": 0, "down": 15}}


def test_a_ledger_goes_on_from_its_state():
    before, after = filled(), ByteLedger((3, 7))
    after.restore(before.state())
    for name in ("by_client", "by_round", "by_phase", "overhead", "avoidable"):
        assert getattr(after, name)() == getattr(before, name)()
    with pytest.raises(ValueError, match="other phases or clients"):
        ByteLedger((1, 2, 3)).restore(before.state())


@pytest.mark.parametrize(
    ("phase", "payload", "error"), [("gossip", 0, ValueError), ("labels", 11, ValueError)]
)
def test_what_cannot_be_is_refused(phase, payload, error):
    with pytest.raises(error):
        ByteLedger((0,)).record(phase, "up", 10, client=0, payload=payload)


def test_rounds_of_a_run_add_up_and_masks_are_overhead(tiny):
    simulation = Simulation(tiny(rounds=2))
    list(simulation.rounds())
    ledger = simulation.ledger
    rounds = ledger.by_round()
    assert list(rounds) == [1, 2]
    for direction in ("up", "down"):
        added = sum(phase[direction] for by in rounds.values() for phase in by.values())
        assert added == pytest.approx(ledger.per_client(direction), abs=20)
        assert 0 < ledger.overhead()[direction] < ledger.per_client(direction)
    starting = 6 * 64  # the first broadcast of each of two batches could have been a seed
    assert ledger.avoidable()["starting noise, from a public seed"]["down"] == 2 * starting


def test_in_the_clear_only_headers_are_overhead(tiny):
    masked, clear = (Simulation(tiny(secure=secure)) for secure in (True, False))
    for simulation in (masked, clear):
        list(simulation.rounds())
    assert clear.ledger.overhead()["up"] < 100
    assert masked.ledger.overhead()["up"] > 10 * clear.ledger.overhead()["up"]


def test_one_broadcast_may_serve_the_last_step_and_the_labels(tiny):
    fast = {"method": "codream-fast", "dream_steps": 1, "dream_batches": 2}
    apart, together = (Simulation(tiny(**fast, label_last_step=x)) for x in (False, True))
    for simulation in (apart, together):
        list(simulation.rounds())
        assert len(simulation.dreams) == 2
    assert (apart.aggregator.steps, together.aggregator.steps) == (4, 2)
    down = [s.ledger.by_phase()["broadcast"]["down"] for s in (apart, together)]
    assert 0.45 < down[1] / down[0] < 0.6
    # The first batch's dreams are made by the same generator, before it has moved.
    first = together.dreams[0]
    assert first.targets.sum(dim=1).tolist() == pytest.approx([1.0] * 6, abs=1e-5)


@pytest.mark.parametrize(
    "more",
    [{"weights": "examples"}, {"adaptive": "jsd", "adaptive_start": 1}],
    ids=["w", "adaptive"],
)
def test_labels_of_the_last_step_are_the_same_masked_and_in_the_clear(tiny, more):
    options = {
        "method": "codream-fast",
        "label_last_step": True,
        "label_weighting": "confidence",
        "dropout": 0.1,
        "clients": 6,
        **more,
    }
    runs = [Simulation(tiny(**options, secure=secure)) for secure in (True, False)]
    for simulation in runs:
        list(simulation.rounds())
    masked, clear = (
        [(d.pixels.tobytes(), d.targets.numpy().tobytes()) for d in s.dreams] for s in runs
    )
    assert masked == clear
    assert masked


def test_a_run_leaves_bytes_by_round_and_by_client(run, tmp_path):
    arguments = ["--clients", "4", "--rounds", "2", "--models", "linear", "--dreams", "4"]
    short = ["--dream-steps", "1", "--kd-epochs", "1", "--quiet"]
    assert run("simulate", *arguments, *short, "--out", "run") == (0, "", "")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "run/summary.json").read_text())["bytes"]
    for direction in ("up", "down"):
        of_rounds = [sum(by[direction] for by in row["bytes_by_phase"].values()) for row in rows]
        assert rows[0][f"bytes_{direction}"] == pytest.approx(of_rounds[0], abs=10)
        assert sum(of_rounds) == pytest.approx(summary[f"per_client_{direction}"], abs=20)
        each = [by[direction] for by in summary["by_client"].values()]
        assert len(each) == 4
        assert sum(each) / 4 == pytest.approx(summary[f"per_client_{direction}"], abs=10)
