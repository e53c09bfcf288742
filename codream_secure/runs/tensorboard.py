"""Writes event files for TensorBoard: one point a round."""

from pathlib import Path
from typing import TYPE_CHECKING

from codream_secure.errors import UserError
from codream_secure.federation.observer import Measurement
from codream_secure.runs.formats import Row

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_FOLDER = "tensorboard"
_COSTS = ("aborted_steps", "bytes_up", "bytes_down", "iterations", "seconds", "epsilon")


def open_events(run: Path) -> "SummaryWriter":
    """Return a writer into a run's folder.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError(
            "--tensorboard needs TensorBoard: pip install 'codream-secure[tensorboard]'"
        ) from None
    return SummaryWriter(str(run / _FOLDER))


def write_events(writer: "SummaryWriter", measured: Measurement, row: Row) -> None:
    """Write one round: what the observer measured, and what the run has cost so far."""
    points = {
        "accuracy/clients": measured.clients_mean,
        "accuracy/independent": measured.independent_mean,
        "accuracy/personal": measured.personal_mean,
        "accuracy/server": measured.server,
        "accuracy/validation": measured.validation,
        **{f"cost/{name}": getattr(row, name) for name in _COSTS},
    }
    for name, value in points.items():
        if value is not None:
            writer.add_scalar(name, value, row.round)
    writer.flush()
