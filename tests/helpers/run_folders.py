"""Records and run folders written by hand."""

import json
from pathlib import Path

import msgspec
from PIL import Image

from codream_secure.config.methods import DREAMING
from codream_secure.privacy.accounting import Release
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.privacy.mechanisms import SampledGaussian
from codream_secure.runs.comparison_format import ComparisonResult, PlanRecord
from codream_secure.runs.formats import (
    FORMAT,
    Accuracy,
    Bytes,
    Dreaming,
    Protocol,
    Row,
    Seconds,
    Summary,
    Traffic,
    compact,
    pretty,
)


def release(name="local training"):
    mechanism = SampledGaussian(noise_multiplier=3.0, sampling_rate=1.0)
    return Release(name=name, unit="example", adjacency="add or remove", mechanism=mechanism)


def guarantee(epsilon=8.0, releases=("local training",)):
    return Guarantee(
        unit="example",
        adjacency="add or remove",
        epsilon=epsilon,
        delta=1e-5,
        accountant="pld",
        rdp_epsilon=epsilon,
        noise_source="os",
        steps=4,
        noise_multiplier=3.0,
        sampling_rate=1.0,
        clip=1.0,
        noise_colluders=None,
        groups={2: 2 * epsilon},
        releases=tuple(map(release, releases)),
    )


def summary_of(method="codream", *, top=0.9, sent=1000, independent=None, epsilon=None, number=3):
    """Return the summary of a run that reached ``top``."""
    dreaming = Dreaming(
        collaboration=True,
        dreams=6,
        dream_batches=1,
        parallel_batches=False,
        dream_steps=20,
        label_last_step=False,
        local_steps=1,
        adaptive="none",
        bits=4,
        label_weighting="equal",
        label_bits=8,
        unlabelled_rounds=0,
        rolled_back=0,
    )
    return Summary(
        format=FORMAT,
        method=method,
        dataset="digits",
        test_digest="d" * 64,
        partition="iid",
        clients=2,
        models=("linear", "linear"),
        seed=0,
        rounds=number,
        rounds_finished=number,
        reported_round=number,
        weights="equal",
        resumed=0,
        iterations=30.0,
        dreaming=dreaming if method in DREAMING else None,
        baseline=None if method in DREAMING else {"local_epochs": 5},
        protocol=Protocol(
            secure=True,
            threat_model="semi-honest",
            threshold=2,
            colluders=0,
            round_trips=6,
            round_trips_per_step=2.0,
            key_exchanges=1,
            steps=3,
            aborted_steps=0,
            completed_share=1.0,
            unanswered_requests=0,
        ),
        accuracy=Accuracy(
            independent_mean=independent,
            clients_mean=top,
            clients_std=0.02,
            server=None,
            independent_personal_mean=independent,
            personal_mean=top,
        ),
        privacy=None if epsilon is None else guarantee(epsilon),
        bytes=Bytes(
            per_client_up=sent,
            per_client_down=2 * sent,
            by_phase={
                "broadcast": Traffic(up=0, down=2 * sent),
                "masked_input": Traffic(up=sent, down=0),
            },
            by_client={c: Traffic(up=sent, down=2 * sent) for c in (0, 1)},
            overhead=Traffic(up=0, down=0),
            avoidable={},
            fedavg_per_client_up=None,
            fedavg_per_client_down=None,
            break_even_parameters=None,
        ),
        seconds=Seconds(
            total=9.0,
            busy=4.5,
            local_training=1.0,
            dreaming=2.0,
            secure_aggregation=1.0,
            acquisition=0.5,
            independent=0.0,
        ),
    )


def changed(record, changes):
    """Return a record with other values; those in dicts are merged into the record's own."""

    def merge(old, new):
        if isinstance(old, dict) and isinstance(new, dict):
            return old | {name: merge(old.get(name), value) for name, value in new.items()}
        return new

    return msgspec.convert(merge(msgspec.to_builtins(record), changes), type(record), strict=False)


def rounds(top, number, *, sent, independent=None, epsilon=None):
    """Rows of metrics.jsonl that climb to an accuracy."""
    return [
        Row(
            round=r,
            clients=(top * r / number - 0.02, top * r / number + 0.02),
            independent=() if independent is None else (independent, independent),
            personal=(),
            independent_personal=(),
            server=None,
            validation=None,
            aborted_steps=0,
            bytes_up=sent * r // number,
            bytes_down=2 * sent * r // number,
            iterations=10.0 * r,
            seconds=1.5 * r,
            epsilon=epsilon,
            bytes_by_phase={},
        )
        for r in range(1, number + 1)
    ]


def write_run(
    name,
    *,
    folder,
    method="codream",
    seed=0,
    top=0.9,
    sent=1000,
    independent=None,
    epsilon=None,
    number=3,
    summary=None,
    config=None,
    pictures=False,
) -> Path:
    """Write a run folder and return its path."""
    path = folder / name
    path.mkdir(parents=True)
    options = {
        "dataset": "digits",
        "partition": "iid",
        "clients": 2,
        "method": method,
        "rounds": number,
        "seed": seed,
        **(config or {}),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    (path / "config.toml").write_text("\n".join(lines))
    rows = rounds(top, number, sent=sent, independent=independent, epsilon=epsilon)
    (path / "metrics.jsonl").write_text("".join(compact(row) + "\n" for row in rows))
    found = summary_of(
        method, top=top, sent=sent, independent=independent, epsilon=epsilon, number=number
    )
    told = {name: options[name] for name in ("dataset", "partition", "clients", "seed")}
    (path / "summary.json").write_text(pretty(changed(found, told | (summary or {}))))
    if pictures:
        for picture in ("dreams.png", "labels.png"):
            Image.new("RGB", (900, 300), "gray").save(path / picture)
    return path


def write_comparison(folder, **plan):
    """Write compare.json as a comparison has it before its cells are done."""
    record = PlanRecord(
        methods=("codream", "fedavg-secure"),
        seeds=(0, 1),
        options={"clients": 2, "adaptive": "kl", "secure": False, "partition": "a b"},
        settings={"learning_rate": 0.1},
        match="bytes",
        trials=2,
        target=None,
    )
    result = ComparisonResult(
        format=FORMAT, plan=changed(record, plan), reference="codream", tuning={}, rows=()
    )
    (folder / "compare.json").write_text(pretty(result))
