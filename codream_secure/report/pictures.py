"""Pictures in a run folder, as PNG: who had which labels, accuracy by round, the last dreams."""

import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.errors import WriteError
from codream_secure.federation.observer import Measurement
from codream_secure.federation.run import Run
from codream_secure.report.drawing import own_settings
from codream_secure.storage.files import replace

_DOT_AREA = 250  # square points, of the largest dot
_TICKS = 20  # at most, on an axis
_COLUMNS, _ROWS = 10, 5
_RGB_CHANNELS = 3


def draw_pictures(run: Run, folder: Path) -> None:
    """Draw label counts, accuracy over rounds and the last dreams of a run into its folder.

    A picture that fails is a warning: the results are worth more.

    Raises:
        WriteError: the disk is full, or the folder is not to be written to.
    """
    wanted = {"labels.png": partial(draw_labels, run.observer.label_counts)}
    if run.dreams:
        heat = run.config.learning.kd_temperature
        wanted["dreams.png"] = partial(draw_dreams, run.dreams[-1], heat)
    if run.observer.history:
        wanted["accuracy.png"] = partial(draw_accuracy, run.observer.history)
    with own_settings():
        for name, draw in wanted.items():
            draw_or_warn(draw, folder / name)


def draw_or_warn(draw: Callable[[Path], None], path: Path) -> None:
    """Draw a picture; warn if that fails.

    Raises:
        WriteError: the disk is full, or the folder is not to be written to.
    """
    try:
        draw(path)
    except WriteError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, no picture is worth a run
        warnings.warn(f"{path} was not drawn: {error}", stacklevel=2)


def draw_dreams(dreams: LabelledDreams, temperature: float, path: Path) -> None:
    """Draw up to 50 dreams sorted by their label, with label and confidence above each.

    Colour images of three channels are drawn in colour; of two or four channels, the first.

    Args:
        dreams: pixels and targets.
        temperature: that the targets were softened with; confidences are shown without it.
        path: of the PNG file.
    """
    labels = dreams.targets.argmax(dim=1).numpy()
    sharp = (dreams.targets.double().log() * temperature).softmax(dim=1)
    confidence = sharp.max(dim=1).values.numpy()
    order = np.argsort(labels, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), _COLUMNS * _ROWS)).astype(int)]
    rows = -(-len(chosen) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS, 1.25 * rows))
    FigureCanvasAgg(figure)
    # Half the width and height of an image, in inches: it fits into a square.
    sides = np.array(dreams.pixels.shape[-2:])
    high, wide = 0.45 * sides / sides.max()
    # One system of axes for all: fifty take seconds to lay out.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    for place, index in enumerate(chosen):
        row, column = divmod(place, _COLUMNS)
        top = 1.25 * row + 0.3
        image = dreams.pixels[index]
        colour = len(image) == _RGB_CHANNELS
        axis.imshow(
            image.transpose(1, 2, 0) if colour else image[0],
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(column + 0.5 - wide, column + 0.5 + wide, top + 2 * high, top),
        )
        text = f"{labels[index]}: {confidence[index]:.0%}"
        axis.text(column + 0.5, top - 0.04, text, fontsize=8, ha="center", va="bottom")
    axis.set(xlim=(0, _COLUMNS), ylim=(1.25 * rows, 0), aspect="auto")
    replace(path, png(figure))


def draw_accuracy(history: Sequence[Measurement], path: Path) -> None:
    """Draw test accuracy over rounds: clients with their spread, independent training, student."""
    rounds = [m.round for m in history]
    mean = np.array([m.clients_mean for m in history])
    spread = np.array([m.clients_std for m in history])
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(rounds, mean, marker="o", label="CoDream clients (mean ± std)")
    axis.fill_between(rounds, mean - spread, mean + spread, alpha=0.2)
    server = [m.server for m in history if m.server is not None]
    if server:
        axis.plot(rounds, server, marker="s", label="server student (dreams only)")
    alone = [m.independent_mean for m in history if m.independent_mean is not None]
    if alone:
        axis.plot(rounds, alone, marker="x", label="independent training")
    axis.set_xlabel("round")
    axis.set_xticks(rounds)
    axis.set_ylabel("test accuracy (observer's)")
    axis.grid(alpha=0.3)
    axis.legend()
    replace(path, png(figure))


def draw_labels(counts: NDArray[np.int64], path: Path) -> None:
    """Draw how many examples of every class every client has, as dots of that area.

    Args:
        counts: int64, shape (clients, classes), some positive; the observer's.
        path: of the PNG file.
    """
    clients, classes = counts.shape
    figure = Figure(figsize=(_inches(clients), _inches(classes)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    rows, columns = np.nonzero(counts)
    # Dots shrink where clients or classes are so many that they would overlap.
    largest = _DOT_AREA * min(1.0, 20 / max(clients, classes)) ** 2
    axis.scatter(rows, columns, s=largest * counts[rows, columns] / counts.max())
    axis.set_xlim(-0.5, clients - 0.5)
    axis.set_ylim(-0.5, classes - 0.5)
    axis.set_xticks(range(0, clients, -(-clients // _TICKS)))
    axis.set_yticks(range(0, classes, -(-classes // _TICKS)))
    axis.set_xlabel("client")
    axis.set_ylabel("class")
    axis.set_title(
        f"training labels (observer's, no epsilon covers them)\nlargest dot: {counts.max():,}",
        fontsize=9,
    )
    replace(path, png(figure))


def png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _inches(entries: int) -> float:
    return float(np.clip(1.5 + 0.35 * entries, 4, 10))
