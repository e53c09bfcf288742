"""What a comparison found: a row a method, means over seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codream_secure.baselines.methods import Method


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def figures(
    method: Method,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    target: float | None,
) -> dict[str, Any]:
    """Return what a table shows of one cell.

    Args:
        method: of the cell.
        rows: of its metrics, at least one.
        summary: of its run.
        target: accuracy at which bytes are read off.
    """
    last, sizes = rows[-1], summary["bytes"]
    chosen = rows[summary["reported_round"] - 1]
    return {
        "accuracy": headline(last, method),
        "accuracy_validated": headline(chosen, method) if summary["privacy"] is None else None,
        "clients_std": summary["accuracy"]["clients_std"],
        "server": last["server"],
        "bytes_up": sizes["per_client_up"],
        "bytes_down": sizes["per_client_down"],
        "bytes_to_target": _bytes_to(target, rows, method),
        "rounds": len(rows),
        "round_trips": summary["round_trips"],
        "epsilon": summary["privacy"]["epsilon"] if summary["privacy"] else None,
        "iterations": summary["iterations"],
        "seconds": summary["seconds"]["busy"],
    }


def _bytes_to(
    target: float | None, rows: Sequence[Mapping[str, Any]], method: Method
) -> int | None:
    for row in rows:
        if target is not None and headline(row, method) >= target:
            return int(row["bytes_up"] + row["bytes_down"])
    return None


def headline(row: Mapping[str, Any], method: Method) -> float:
    """Return the accuracy that a method is compared by, of one round.

    Its one model for all where it has one, else the mean over the clients' models.
    """
    if method.one_model:
        return float(row["server"])
    return float(sum(row["clients"]) / len(row["clients"]))


def means(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return means over the seeds that did not fail, and the spread of the accuracy over them."""
    done = [cell for cell in cells if cell["failed"] is None]
    if not done:
        return None
    found: dict[str, Any] = {}
    for key in done[0]:
        values = [cell[key] for cell in done]
        if key not in ("folder", "failed"):
            known = all(value is not None for value in values)
            found[key] = sum(values) / len(values) if known else None
    accuracies = [cell["accuracy"] for cell in done]
    found["accuracy_spread"] = (max(accuracies) - min(accuracies)) / 2
    found["seeds"] = len(done)
    return found
