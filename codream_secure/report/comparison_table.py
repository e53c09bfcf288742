"""The table that a comparison ends with."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from codream_secure.communication import megabytes

Row = Mapping[str, Any]


def comparison_table(result: Mapping[str, Any]) -> Table:
    """Return the table of what `compare.Comparison.run` found: a row a method."""
    plan = result["plan"]
    table = Table(
        title=_title(result),
        title_justify="left",
        caption=_caption(plan),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name.replace("TARGET", f"{plan['target'] or ''}"), justify="right")
    failures: list[str] = []
    for row in result["rows"]:
        if row["mean"] is None:
            reasons = {cell["failed"] for cell in row["cells"].values()}
            failures.append(f"{row['method']}: {'; '.join(sorted(reasons))}")
            table.add_row(row["method"], *["-"] * len(_COLUMNS))
        else:
            table.add_row(row["method"], *(show(row["mean"]) for show in _COLUMNS.values()))
    if failures:
        table.caption = "\n".join([*failures, str(table.caption)])
    return table


def _title(result: Mapping[str, Any]) -> str:
    plan = result["plan"]
    seeds = ", ".join(map(str, plan["seeds"]))
    return f"equal {plan['match']}, as many as {result['reference']} takes; seeds {seeds}"


def _caption(plan: Mapping[str, Any]) -> str:
    words = (
        "test: last round, the one model for all where there is one, else the clients' mean; "
        "std: over clients; val.: test accuracy of the round that validation chose. MB and "
        "iterations are a client's."
    )
    if plan["trials"] > 1:
        words += f" Step sizes: the best of {plan['trials']} on validation."
    return words


def _hundredths(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _accuracy(mean: Row) -> str:
    text = _hundredths(mean["accuracy"])
    return text if mean["seeds"] == 1 else f"{text}±{_hundredths(mean['accuracy_spread'])}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _mega(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "test\n%": _accuracy,
    "val.\n%": lambda mean: _hundredths(mean["accuracy_validated"]),
    "std\n%": lambda mean: _hundredths(mean["clients_std"]),
    "MB\nup": lambda mean: _mega(mean["bytes_up"]),
    "MB\ndown": lambda mean: _mega(mean["bytes_down"]),
    "MB to\nTARGET": lambda mean: _mega(mean["bytes_to_target"]),
    "rounds": lambda mean: _count(mean["rounds"]),
    "trips": lambda mean: _count(mean["round_trips"]),
    "ε": lambda mean: "-" if mean["epsilon"] is None else f"{mean['epsilon']:.2f}",
    "iter.": lambda mean: _count(mean["iterations"]),
    "s": lambda mean: _count(mean["seconds"]),
}


def sizes_table(found: Mapping[str, Any]) -> Table:
    """Return the table of `compare.sizes.sizes`: megabytes a round and client, both ways."""
    shape = found["shape"]
    table = Table(
        title=(
            f"MB a round and client, both ways: n = {shape['clients']} clients, "
            f"{shape['batches']} batches of {shape['dreams']} dreams, q = {shape['bits']} bits a "
            f"coordinate (b = {shape['field_bits']} in a sum), R = {shape['dream_steps']} steps "
            f"(fast {shape['fast_steps']}), M = 1"
        ),
        title_justify="left",
        caption=_crossover(found),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    rows = found["rows"]
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row["model"].replace(" ", "\n"), justify="right")
    table.add_row("numbers, million", *(f"{row['numbers'] / 1e6:.2f}" for row in rows))
    for name in list(rows[0])[2:]:
        values = [row[name] for row in rows]
        shown = [megabytes(v) if isinstance(v, dict) else v for v in values]
        table.add_row(
            name.removesuffix(" MB").replace(": codream-fast", ": fast"),
            *("-" if v is None else f"{v:,.1f}" for v in shown),
        )
    return table


def _crossover(found: Mapping[str, Any]) -> str:
    lines = [
        f"{name}: {at['codream'] / 1e6:,.1f} M (fast {at['codream-fast'] / 1e6:,.2f} M)"
        for name, at in found["crossover"].items()
    ]
    return "dreams are smaller for models above, against " + "; ".join(lines)
