"""The summary of a run: what summary.json holds and the table shows."""

from typing import Any

import msgspec
from torch import nn

from codream_secure.federation.observer import Measurement
from codream_secure.federation.run import Run

SCHEMA_VERSION = 1


def encoded_state(model: nn.Module) -> bytes:
    """Encode a model as a FedAvg client would send it: float32 values, buffers included."""
    state = {
        name: value.detach().float().cpu().contiguous().numpy().tobytes()
        for name, value in model.state_dict().items()
    }
    return msgspec.msgpack.encode(state)


def summarise(run: Run) -> dict[str, Any]:
    """Return the summary of what a run has done so far, in JSON's own types.

    Accuracies are the observer's, measured on the test set after the reported round, and not
    covered by epsilon; they are null when no round was finished. What a baseline has not is null.
    """
    config = run.config
    reported = run.observer.reported()
    return {
        "schema_version": SCHEMA_VERSION,
        "method": run.method_name,
        "dataset": config.data.dataset,
        "test_digest": run.observer.test_digest,
        "partition": config.data.partition,
        "clients": config.data.clients,
        "models": list(run.federation.model_names),
        "seed": config.run.seed or 0,
        "secure": run.masked,
        "threat_model": config.secure.threat_model if run.masked else None,
        "rounds": config.dream.rounds,
        "rounds_finished": len(run.observer.history),
        "reported_round": reported.round if reported else None,
        **_dreaming(run),
        **_aggregation(run),
        "weights": config.learning.weights,
        "accuracy": _accuracy(reported),
        "privacy": _privacy(run),
        "bytes": _bytes(run),
        "iterations": round(run.iterations, 1),
        "seconds": _seconds(run),
    }


def _dreaming(run: Run) -> dict[str, Any]:
    """Return what only methods that dream have."""
    if not run.makes_dreams:
        settings = dict(run.method_settings)
        return dict.fromkeys(_DREAMING) | {"resumed": run.resumed, "settings": settings}
    dream, learning = run.config.dream, run.config.learning
    found = (
        run.resumed,
        dream.collaboration,
        dream.dreams,
        dream.dream_batches,
        dream.parallel_batches,
        dream.dream_steps,
        dream.label_last_step,
        dream.local_steps,
        dream.adaptive,
        dream.bits,
        learning.label_weighting,
        learning.label_bits,
        run.unlabelled_rounds,
        run.rolled_back,
    )
    return dict(zip(_DREAMING, found, strict=True))


_DREAMING = (
    "resumed",
    "collaboration",
    "dreams",
    "dream_batches",
    "side_by_side",
    "dream_steps",
    "label_last_step",
    "local_steps",
    "adaptive",
    "bits",
    "label_weighting",
    "label_bits",
    "unlabelled_rounds",
    "rolled_back",
)


def _aggregation(run: Run) -> dict[str, Any]:
    """Return what summing took; a baseline in the clear at full precision has no aggregator."""
    aggregator = run.aggregator
    names = (
        "threshold",
        "colluders",
        "round_trips",
        "round_trips_per_step",
        "key_exchanges",
        "aborted_steps",
        "completed_share",
        "unanswered_requests",
    )
    found = {name: getattr(aggregator, name, None) for name in names}
    found["aggregation_steps"] = None if aggregator is None else aggregator.steps
    if aggregator is None:
        sends = any(run.ledger.per_client(direction) for direction in ("up", "down"))
        found["round_trips"] = len(run.observer.history) if sends else 0
    return found


def progress_of(run: Run) -> dict[str, Any]:
    """Return what a run has cost so far: a row of metrics.jsonl beside the accuracies.

    ``bytes_by_phase`` is of the last round alone.
    """
    return {
        "aborted_steps": _aggregation(run)["aborted_steps"] or 0,
        "bytes_up": run.ledger.per_client("up"),
        "bytes_down": run.ledger.per_client("down"),
        "iterations": round(run.iterations, 1),
        "seconds": round(run.stopwatch.busy, 3),
        "epsilon": run.epsilon(),
        "bytes_by_phase": {
            phase: by
            for phase, by in run.ledger.by_round().get(len(run.observer.history), {}).items()
            if any(by.values())
        },
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


def _privacy(run: Run) -> dict[str, Any] | None:
    guarantee = run.guarantee()
    return None if guarantee is None else dict(msgspec.to_builtins(guarantee))


def _bytes(run: Run) -> dict[str, Any]:
    ledger = run.ledger
    up, down = ledger.per_client("up"), ledger.per_client("down")
    homogeneous = len(set(run.federation.model_names)) == 1
    rounds = len(run.observer.history)
    fedavg = len(encoded_state(run.federation.student.model)) * rounds if homogeneous else None
    return {
        "per_client_up": up,
        "per_client_down": down,
        "by_phase": ledger.by_phase(),
        "by_client": {str(client): by for client, by in ledger.by_client().items()},
        "overhead": ledger.overhead(),
        "could_save": ledger.avoidable(),
        "fedavg_per_client_up": fedavg,
        "fedavg_per_client_down": fedavg,
        # FedAvg moves 2 x rounds x 4 bytes a parameter.
        "equal_at_parameters": round((up + down) / (8 * rounds)) if rounds else None,
    }


def _seconds(run: Run) -> dict[str, float]:
    """Return seconds by activity; the rest of ``total`` is set-up and measuring.

    ``busy`` is their sum without independent training: what the method itself took.
    """
    spent = run.stopwatch.seconds
    return {
        "total": round(run.stopwatch.total, 3),
        "busy": round(run.stopwatch.busy, 3),
        "local_training": round(spent["local_training"], 3),
        "dreaming": round(spent["dreaming"] + spent["answering"], 3),
        "secure_aggregation": round(spent["secure_aggregation"], 3),
        "acquisition": round(spent["acquisition"], 3),
        "independent": round(spent["independent"], 3),
    }
