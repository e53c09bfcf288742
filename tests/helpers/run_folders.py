"""Run folders written by hand."""

import json
from pathlib import Path

import pytest
from PIL import Image


def rounds(top, number, *, sent, independent=None, epsilon=None):
    """Rows of metrics.jsonl that climb to an accuracy."""
    return [
        {
            "round": r,
            "clients": [top * r / number - 0.02, top * r / number + 0.02],
            "independent": [] if independent is None else [independent, independent],
            "personal": [],
            "independent_personal": [],
            "server": None,
            "validation": None,
            "aborted_steps": 0,
            "bytes_up": sent * r // number,
            "bytes_down": 2 * sent * r // number,
            "iterations": 10.0 * r,
            "seconds": 1.5 * r,
            "epsilon": epsilon,
        }
        for r in range(1, number + 1)
    ]


@pytest.fixture
def write_run(tmp_path):
    """Return a function that writes a run folder and gives its path."""

    def write(
        name,
        *,
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
        folder=tmp_path,
    ) -> Path:
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
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        phases = {"broadcast": {"up": 0, "down": 2 * sent}, "masked_input": {"up": sent, "down": 0}}
        found = {
            **options,
            "rounds_finished": number,
            "secure": True,
            "accuracy": {
                "clients_mean": top,
                "clients_std": 0.02,
                "independent_mean": independent,
                "server": None,
            },
            "privacy": None if epsilon is None else {"epsilon": epsilon, "delta": 1e-5},
            "bytes": {"per_client_up": sent, "per_client_down": 2 * sent, "by_phase": phases},
            "seconds": {"total": 4.5},
            "iterations": 30.0,
            **(summary or {}),
        }
        (path / "summary.json").write_text(json.dumps(found))
        if pictures:
            for picture in ("dreams.png", "labels.png"):
                Image.new("RGB", (900, 300), "gray").save(path / picture)
        return path

    return write
