"""The result of a comparison: figures of every cell, and their means over seeds."""

from collections.abc import Sequence
from typing import Any, Protocol

from codream_secure.config.methods import Method
from codream_secure.runs.comparison_format import Cell, Figures, Means
from codream_secure.runs.formats import Row, Summary


class Measured(Protocol):
    """Test accuracies of one round."""

    @property
    def server(self) -> float | None:
        """Of the one model for all, or of the server's student."""

    @property
    def clients(self) -> Sequence[float]:
        """Of the clients' models."""


def figures(method: Method, rows: Sequence[Row], summary: Summary, target: float | None) -> Figures:
    """Return what a table shows of one cell.

    Args:
        method: of the cell.
        rows: of its metrics, at least one.
        summary: of its run.
        target: accuracy at which bytes are read off; None: nowhere.
    """
    last, privacy = rows[-1], summary.privacy
    chosen = rows[(summary.reported_round or len(rows)) - 1]
    return Figures(
        accuracy=headline(last, method),
        accuracy_validated=headline(chosen, method) if privacy is None else None,
        clients_std=summary.accuracy.clients_std,
        server=last.server,
        personal=sum(last.personal) / len(last.personal) if last.personal else None,
        largest_class=summary.largest_class,
        single_owner_classes=summary.single_owner_classes,
        bytes_up=summary.bytes.per_client_up,
        bytes_down=summary.bytes.per_client_down,
        bytes_to_target=_bytes_to(target, rows, method),
        rounds=len(rows),
        round_trips=summary.protocol.round_trips,
        epsilon=privacy.epsilon if privacy else None,
        iterations=summary.iterations,
        seconds=summary.seconds.busy,
    )


def _bytes_to(target: float | None, rows: Sequence[Row], method: Method) -> int | None:
    for row in rows:
        if target is not None and headline(row, method) >= target:
            return row.bytes_both
    return None


def headline(measured: Measured, method: Method) -> float:
    """Return the accuracy of one round that methods are compared by, 0 to 1.

    It is that of the one model for all where the method has one, else the mean over the clients.
    """
    if method.one_model and measured.server is not None:
        return measured.server
    return sum(measured.clients) / len(measured.clients)


def means(cells: Sequence[Cell]) -> Means | None:
    """Return means over the seeds that did not fail, and the spread of the accuracy over them."""
    done = [cell.figures for cell in cells if cell.figures is not None]
    if not done:
        return None
    accuracies = [one.accuracy for one in done]
    mean: dict[str, Any] = {
        name: _mean([getattr(one, name) for one in done]) for name in Figures.__struct_fields__
    }
    spread = (max(accuracies) - min(accuracies)) / 2
    return Means(**mean, accuracy_spread=spread, seeds=len(done))


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a seed lacks the figure."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
