"""Runs that are interrupted and gone on with, and what must be the same in the end."""

import json
from contextlib import closing

import msgspec
import torch

from codream_secure.federation.run import Run
from codream_secure.federation.simulation import Simulation
from codream_secure.runs.folder import RunFolder
from codream_secure.runs.summary import row_of, summarise

# What an interruption costs shows here and nowhere else in a summary.
OF_FRESH_KEYS = ("advertise_keys", "share_keys")
OF_THIS_PROCESS = {"bytes_up", "bytes_down", "bytes_by_phase", "seconds"}

SHORT = {
    "clients": 4,
    "rounds": 3,
    "models": "mlp",
    "seed": 0,
    "dreams": 4,
    "dream_steps": 2,
    "kd_epochs": 1,
    "warmup_epochs": 1,
}


def play(simulation, folder, stop_after=None):
    """Run the rounds that are left as the command line does, without its pictures."""
    with closing(folder):
        for measurement in simulation.rounds():
            folder.record(row_of(simulation, measurement))
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
    """Return the weights as they are now, not those of the reported round."""
    twins = {f"twin-{c}": m.state_dict() for c, m in simulation.federation.twin_models().items()}
    return {**Run.weights(simulation), **twins}


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
    summary = msgspec.to_builtins(summarise(simulation))
    for name in ("seconds", "resumed"):
        del summary[name]
    for name in (
        "per_client_up",
        "per_client_down",
        "break_even_parameters",
        "overhead",
        "by_client",
        "avoidable",
    ):
        del summary["bytes"][name]
    for phase in OF_FRESH_KEYS:
        del summary["bytes"]["by_phase"][phase]
    return summary


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))
