"""What a run leaves behind: configuration, metrics, summary, pictures and models."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from codream_secure.config import Config
from codream_secure.errors import UserError
from codream_secure.observer import Measurement
from codream_secure.report.plots import draw_accuracy, draw_dreams, draw_labels
from codream_secure.resolve import to_toml
from codream_secure.simulation import Simulation


def default_folder(config: Config) -> Path:
    """Return ``runs/<time>-<name>`` for a run that starts now."""
    name = Path(config.data.dataset).stem
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.dream.method}-{name}"


class RunFolder:
    """A folder that is readable at any moment of the run, also after Ctrl-C.

    Args:
        path: must not exist or be empty.

    Raises:
        UserError: the folder holds something already or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"--out {path} is not empty; name another folder or empty it")
            self._metrics.touch()
        except OSError as error:
            raise UserError(f"cannot write to --out {path}: {error.strerror}") from None

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def start(self, config: Config) -> None:
        """Write what is needed to rerun: ``codream-secure simulate --config config.toml``."""
        (self.path / "config.toml").write_text(to_toml(config), encoding="utf-8")

    def append(self, measurement: Measurement, extra: Mapping[str, Any]) -> None:
        """Append one round to metrics.jsonl."""
        line = json.dumps(dataclasses.asdict(measurement) | dict(extra))
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def finish(self, simulation: Simulation, summary: Mapping[str, Any]) -> None:
        """Write the summary, then pictures and models of whatever was reached."""
        text = json.dumps(summary, indent=2)
        (self.path / "summary.json").write_text(text + "\n", encoding="utf-8")
        draw_labels(simulation.observer.label_counts, self.path / "labels.png")
        if simulation.dreams:
            temperature = simulation.config.learning.kd_temperature
            draw_dreams(simulation.dreams[-1], temperature, self.path / "dreams.png")
        if simulation.observer.history:
            draw_accuracy(simulation.observer.history, self.path / "accuracy.png")
        self._save_models(simulation)

    def _save_models(self, simulation: Simulation) -> None:
        folder = self.path / "models"
        folder.mkdir(exist_ok=True)
        for name, weights in simulation.weights().items():
            save_file(weights, folder / f"{name}.safetensors")
