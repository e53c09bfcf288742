"""The summary of a run: what summary.json holds and the table shows."""

from typing import Any

import msgspec
from torch import nn

from codream_secure.observer import Measurement
from codream_secure.simulation import Simulation

SCHEMA_VERSION = 1


def encoded_state(model: nn.Module) -> bytes:
    """Encode a model as a FedAvg client would send it: float32 values, buffers included."""
    state = {
        name: value.detach().float().cpu().contiguous().numpy().tobytes()
        for name, value in model.state_dict().items()
    }
    return msgspec.msgpack.encode(state)


def summarise(simulation: Simulation) -> dict[str, Any]:
    """Return the summary of what a simulation has done so far, in JSON's own types.

    Accuracies are the observer's, measured on the test set after the reported round, and not
    covered by epsilon; they are null when no round was finished.
    """
    config = simulation.config
    reported = simulation.observer.reported()
    return {
        "schema_version": SCHEMA_VERSION,
        "method": config.dream.method,
        "dataset": config.data.dataset,
        "partition": config.data.partition,
        "clients": config.data.clients,
        "models": list(simulation.federation.model_names),
        "seed": config.run.seed or 0,
        "secure": config.secure.secure,
        "threat_model": config.secure.threat_model if config.secure.secure else None,
        "threshold": simulation.aggregator.threshold,
        "colluders": simulation.aggregator.colluders,
        "rounds": config.dream.rounds,
        "rounds_finished": len(simulation.observer.history),
        "resumed": simulation.resumed,
        "reported_round": reported.round if reported else None,
        "collaboration": config.dream.collaboration,
        "dreams": config.dream.dreams,
        "dream_batches": config.dream.dream_batches,
        "dream_steps": config.dream.dream_steps,
        "local_steps": config.dream.local_steps,
        "adaptive": config.dream.adaptive,
        "bits": config.dream.bits,
        "weights": config.learning.weights,
        "label_weighting": config.learning.label_weighting,
        "label_bits": config.learning.label_bits,
        "round_trips_per_step": simulation.aggregator.round_trips_per_step,
        "key_exchanges": simulation.aggregator.key_exchanges,
        "aggregation_steps": simulation.aggregator.steps,
        "aborted_steps": simulation.aggregator.aborted_steps,
        "completed_share": simulation.aggregator.completed_share,
        "unanswered_requests": simulation.aggregator.unanswered_requests,
        "unlabelled_rounds": simulation.unlabelled_rounds,
        "rolled_back": simulation.rolled_back,
        "accuracy": _accuracy(reported),
        "privacy": _privacy(simulation),
        "bytes": _bytes(simulation),
        "iterations": round(simulation.iterations, 1),
        "seconds": _seconds(simulation),
    }


def progress_of(simulation: Simulation) -> dict[str, Any]:
    """Return what a run has cost so far: a row of metrics.jsonl beside the accuracies."""
    guarantee = simulation.guarantee()
    return {
        "aborted_steps": simulation.aggregator.aborted_steps,
        "bytes_up": simulation.ledger.per_client("up"),
        "bytes_down": simulation.ledger.per_client("down"),
        "iterations": round(simulation.iterations, 1),
        "seconds": round(simulation.stopwatch.total, 3),
        "epsilon": None if guarantee is None else guarantee.epsilon,
    }


def _accuracy(reported: Measurement | None) -> dict[str, float | None]:
    names = (
        "independent_mean",
        "clients_mean",
        "clients_std",
        "server",
        "independent_personal_mean",
        "personal_mean",
    )
    return {name: getattr(reported, name) if reported else None for name in names}


def _privacy(simulation: Simulation) -> dict[str, Any] | None:
    guarantee = simulation.guarantee()
    return None if guarantee is None else dict(msgspec.to_builtins(guarantee))


def _bytes(simulation: Simulation) -> dict[str, Any]:
    ledger = simulation.ledger
    up, down = ledger.per_client("up"), ledger.per_client("down")
    homogeneous = len(set(simulation.federation.model_names)) == 1
    rounds = len(simulation.observer.history)
    fedavg = (
        len(encoded_state(simulation.federation.student.model)) * rounds if homogeneous else None
    )
    return {
        "per_client_up": up,
        "per_client_down": down,
        "by_phase": ledger.by_phase(),
        "overhead": ledger.overhead(),
        "could_save": ledger.savings(),
        "fedavg_per_client_up": fedavg,
        "fedavg_per_client_down": fedavg,
        # FedAvg moves 2 x rounds x 4 bytes a parameter.
        "equal_at_parameters": round((up + down) / (8 * rounds)) if rounds else None,
    }


def _seconds(simulation: Simulation) -> dict[str, float]:
    """Return seconds by activity; the rest of ``total`` is set-up and measuring."""
    spent = simulation.stopwatch.seconds
    return {
        "total": round(simulation.stopwatch.total, 3),
        "local_training": round(spent["local_training"], 3),
        "dreaming": round(spent["dreaming"] + spent["answering"], 3),
        "secure_aggregation": round(spent["secure_aggregation"], 3),
        "acquisition": round(spent["acquisition"], 3),
        "independent": round(spent["independent"], 3),
    }
