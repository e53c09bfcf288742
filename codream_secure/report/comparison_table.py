"""The table that a comparison ends with."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from codream_secure.report.text import percent, size

Row = Mapping[str, Any]


def comparison_table(result: Mapping[str, Any]) -> Table:
    """Return the table of what `compare.Comparison.run` found: a row a method."""
    plan = result["plan"]
    table = Table(title=_title(result), title_justify="left", caption=_caption(plan))
    table.add_column("method", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for row in result["rows"]:
        if row["mean"] is None:
            reasons = {cell["failed"] for cell in row["cells"].values()}
            table.add_row(row["method"], *["-"] * (len(_COLUMNS) - 1), "; ".join(sorted(reasons)))
        else:
            table.add_row(row["method"], *(show(row["mean"]) for show in _COLUMNS.values()))
    return table


def _title(result: Mapping[str, Any]) -> str:
    plan = result["plan"]
    seeds = ", ".join(map(str, plan["seeds"]))
    return f"equal {plan['match']}, as many as {result['reference']} takes; seeds {seeds}"


def _caption(plan: Mapping[str, Any]) -> str:
    words = (
        "Test accuracy (observer's) of the one model for all where there is one, else the mean "
        "over clients; 'validated': of the round that validation chose. Bytes are a client's."
    )
    if plan["trials"] > 1:
        words += f" Step sizes: best of {plan['trials']} on validation, at equal trials."
    return words


def _accuracy(mean: Row) -> str:
    text = percent(mean["accuracy"])
    return text if mean["seeds"] == 1 else f"{text} ± {percent(mean['accuracy_spread'])}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _bytes(value: float | None) -> str:
    return "-" if value is None else size(round(value))


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "accuracy": _accuracy,
    "validated": lambda mean: percent(mean["accuracy_validated"]),
    "over clients": lambda mean: f"± {percent(mean['clients_std'])}",
    "up": lambda mean: _bytes(mean["bytes_up"]),
    "down": lambda mean: _bytes(mean["bytes_down"]),
    "to target": lambda mean: _bytes(mean["bytes_to_target"]),
    "rounds": lambda mean: _count(mean["rounds"]),
    "round trips": lambda mean: _count(mean["round_trips"]),
    "ε": lambda mean: "none" if mean["epsilon"] is None else f"{mean['epsilon']:.2f}",
    "iterations": lambda mean: _count(mean["iterations"]),
    "seconds": lambda mean: _count(mean["seconds"]),
}
