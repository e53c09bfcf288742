"""Makes the records of a run: its `Summary`, and a `Row` a round."""

import math
from dataclasses import asdict

import msgspec
from torch import nn

from codream_secure.aggregation.graph import MaskGraph
from codream_secure.federation.observer import Measurement
from codream_secure.federation.run import Run
from codream_secure.runs.formats import (
    FORMAT,
    Accuracy,
    Bytes,
    Dreaming,
    Graph,
    Protocol,
    Row,
    Seconds,
    Summary,
    Traffic,
    traffic,
)


def encoded_state(model: nn.Module) -> bytes:
    """Encode a model as a FedAvg client would send it: float32 values, buffers included."""
    state = {
        name: value.detach().float().cpu().contiguous().numpy().tobytes()
        for name, value in model.state_dict().items()
    }
    return msgspec.msgpack.encode(state)


def summarise(run: Run) -> Summary:
    """Return the summary of what a run has done so far.

    Accuracies are the observer's, measured on the test set after the reported round. No epsilon
    covers them.
    """
    config, reported, counts = run.config, run.observer.reported(), run.observer.label_counts
    return Summary(
        format=FORMAT,
        method=run.method_name,
        dataset=config.data.dataset,
        test_digest=run.observer.test_digest,
        partition=config.data.partition,
        clients=config.data.clients,
        models=tuple(run.federation.model_names),
        seed=config.run.seed or 0,
        rounds=config.dream.rounds,
        rounds_finished=len(run.observer.history),
        reported_round=reported.round if reported else None,
        weights=config.learning.weights,
        resumed=run.resumed,
        iterations=round(run.iterations, 1),
        dreaming=_dreaming(run) if run.makes_dreams else None,
        baseline=None if run.makes_dreams else dict(run.method_settings),
        protocol=_protocol(run),
        accuracy=_accuracy(reported),
        privacy=run.guarantee(),
        bytes=_bytes(run),
        seconds=_seconds(run),
        largest_class=float((counts.max(axis=1) / counts.sum(axis=1).clip(min=1)).mean()),
        single_owner_classes=int(((counts > 0).sum(axis=0) == 1).sum()),
    )


def _dreaming(run: Run) -> Dreaming:
    dream, learning = run.config.dream, run.config.learning
    return Dreaming(
        collaboration=dream.collaboration,
        dreams=dream.dreams,
        dream_batches=dream.dream_batches,
        parallel_batches=dream.parallel_batches,
        dream_steps=dream.dream_steps,
        label_last_step=dream.label_last_step,
        local_steps=dream.local_steps,
        adaptive=dream.adaptive,
        bits=dream.bits,
        label_weighting=learning.label_weighting,
        label_bits=learning.label_bits,
        unlabelled_rounds=run.unlabelled_rounds,
        rolled_back=run.rolled_back,
    )


def _protocol(run: Run) -> Protocol:
    """Return what summing took. FedAvg in the clear at full precision has no aggregator."""
    found = run.aggregator
    sends = any(run.ledger.per_client(direction) for direction in ("up", "down"))
    rounds = len(run.observer.history) if sends else 0
    return Protocol(
        secure=run.masked,
        threat_model=run.config.secure.threat_model if run.masked else None,
        threshold=None if found is None else found.threshold,
        colluders=None if found is None else found.colluders,
        graph=_graph(found.graph) if found is not None and run.masked else None,
        round_trips=rounds if found is None else found.round_trips,
        round_trips_per_step=None if found is None else found.round_trips_per_step,
        key_exchanges=None if found is None else found.key_exchanges,
        steps=None if found is None else found.steps,
        aborted_steps=None if found is None else found.aborted_steps,
        completed_share=None if found is None else found.completed_share,
        unanswered_requests=None if found is None else found.unanswered_requests,
    )


def _graph(found: MaskGraph) -> Graph:
    """Return what is recorded of a graph."""
    sparse = found.sparse
    unsafe = -math.inf if sparse is None else sparse.log2_unsafe
    return Graph(
        name=found.name,
        why=found.why,
        neighbours=None if sparse is None else sparse.k,
        needed=None if sparse is None else sparse.t,
        corrupt=None if sparse is None else sparse.corrupt,
        silent=None if sparse is None else sparse.dropouts,
        unsafe_log2=round(unsafe, 1) if math.isfinite(unsafe) else None,
    )


def row_of(run: Run, measured: Measurement) -> Row:
    """Return the row of the round that has just ended: accuracies, and costs so far."""
    sent = run.ledger.of_round(len(run.observer.history))
    return Row(
        **asdict(measured),
        aborted_steps=_protocol(run).aborted_steps or 0,
        bytes_up=run.ledger.per_client("up"),
        bytes_down=run.ledger.per_client("down"),
        iterations=round(run.iterations, 1),
        seconds=round(run.stopwatch.busy, 3),
        epsilon=run.epsilon(),
        bytes_by_phase=traffic({phase: by for phase, by in sent.items() if any(by.values())}),
    )


def _accuracy(reported: Measurement | None) -> Accuracy:
    names = Accuracy.__struct_fields__
    return Accuracy(**{name: getattr(reported, name) if reported else None for name in names})


def _bytes(run: Run) -> Bytes:
    ledger = run.ledger
    up, down = ledger.per_client("up"), ledger.per_client("down")
    homogeneous = len(set(run.federation.model_names)) == 1
    rounds = len(run.observer.history)
    fedavg = len(encoded_state(run.federation.student.model)) * rounds if homogeneous else None
    return Bytes(
        per_client_up=up,
        per_client_down=down,
        by_phase=traffic(ledger.by_phase()),
        by_client={client: Traffic(**by) for client, by in ledger.by_client().items()},
        overhead=Traffic(**ledger.overhead()),
        avoidable=traffic(ledger.avoidable()),
        fedavg_per_client_up=fedavg,
        fedavg_per_client_down=fedavg,
        # In a round FedAvg moves every parameter once up and once down, 4 bytes each.
        break_even_parameters=round((up + down) / (8 * rounds)) if rounds else None,
    )


def _seconds(run: Run) -> Seconds:
    spent = run.stopwatch.seconds
    return Seconds(
        total=round(run.stopwatch.total, 3),
        busy=round(run.stopwatch.busy, 3),
        local_training=round(spent["local_training"], 3),
        dreaming=round(spent["dreaming"] + spent["answering"], 3),
        secure_aggregation=round(spent["secure_aggregation"], 3),
        acquisition=round(spent["acquisition"], 3),
        independent=round(spent["independent"], 3),
    )
