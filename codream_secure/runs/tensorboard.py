"""TensorBoard's event files, for those who look there: one point a round."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codream_secure.errors import UserError
from codream_secure.federation.observer import Measurement

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_FOLDER = "tensorboard"


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


def write_events(writer: "SummaryWriter", measured: Measurement, extra: Mapping[str, Any]) -> None:
    """Write one round: what the observer measured, and what the run has cost so far."""
    points = {
        "accuracy/clients": measured.clients_mean,
        "accuracy/independent": measured.independent_mean,
        "accuracy/personal": measured.personal_mean,
        "accuracy/server": measured.server,
        "accuracy/validation": measured.validation,
        **{f"cost/{k}": v for k, v in extra.items() if not isinstance(v, Mapping)},
    }
    for name, value in points.items():
        if value is not None:
            writer.add_scalar(name, value, measured.round)
    writer.flush()
