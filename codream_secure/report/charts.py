"""Charts of a page, as SVG that stands in the page and takes its colours."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)
from numpy.typing import NDArray

from codream_secure.dreaming.synthesis import LabelledDreams
from codream_secure.federation.observer import Measurement
from codream_secure.federation.run import Run
from codream_secure.report.groups import Group, Point
from codream_secure.runs.reading import Row

# Hues that can be read on white and on black.
_COLOURS = (
    "#2f81d6",
    "#d9731a",
    "#2a9d63",
    "#c94f8f",
    "#8a63d2",
    "#9a7d1a",
    "#2596a8",
    "#d0453b",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")
_DASHES = ("solid", "dashed", "dotted", "dashdot")
# Stands for the page's text colour until the SVG is text.
_INK = "#010203"
_SIZE = (5.6, 3.5)
_CROWDED = 2.2  # decades of a log axis


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a legend."""

    label: str
    colour: str
    glyph: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture, its legend and what it shows."""

    svg: Markup
    legend: tuple[Key, ...]
    title: str


def over_rounds(groups: Sequence[Group]) -> Chart | None:
    """Draw test accuracy over rounds; of a single group also training alone and the student."""
    drawing = _Drawing("rounds", "Test accuracy over rounds", "round")
    for index, group in enumerate(groups):
        drawing.curve(index, group.label, group.curve(_round, _accuracy))
    if len(groups) == 1:
        only = groups[0]
        if len(only.runs) == 1 and not only.first.one_model:
            drawing.band([row for row in only.first.rows if row.accuracy is not None])
        alone = only.curve(_round, lambda row: row.independent)
        drawing.curve(1, "training alone", alone)
        drawing.curve(2, "server's student", only.curve(_round, lambda row: row.student))
    drawing.axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return drawing.finish()


def over_bytes(groups: Sequence[Group]) -> Chart | None:
    """Draw test accuracy over the bytes of one client; what sends nothing is a level line."""
    drawing = _Drawing("bytes", "Test accuracy over bytes up and down a client", "bytes a client")
    for index, group in enumerate(groups):
        if group.sends:
            points = group.curve(lambda row: row.bytes_both, _accuracy)
            drawing.curve(index, group.label, [point for point in points if point.x > 0])
    if not drawing.drawn:
        return None
    drawing.log_bytes()
    for index, group in enumerate(groups):
        if not group.sends:
            level = group.mean(lambda run: run.accuracy)
            drawing.level(index, f"{group.label} (sends nothing)", level)
    if len(groups) == 1:
        alone = groups[0].mean(lambda run: run.independent)
        drawing.level(1, "training alone (sends nothing)", alone)
    return drawing.finish()


def over_epsilon(groups: Sequence[Group]) -> Chart | None:
    """Draw test accuracy over epsilon; runs without privacy are level lines."""
    drawing = _Drawing("epsilon", "Test accuracy over ε", f"ε of {groups[0].first.unit}")
    for index, group in enumerate(groups):
        if group.first.private:
            drawing.curve(index, group.label, _spent(group))
    if not drawing.drawn:
        return None
    for index, group in enumerate(groups):
        if group.first.private is False:
            level = group.mean(lambda run: run.accuracy)
            drawing.level(index, f"{group.label} (no privacy)", level)
    drawing.axis.set_xlim(left=0)
    return drawing.finish()


def _round(row: Row) -> float:
    return row.round


def _accuracy(row: Row) -> float | None:
    return row.accuracy


def _spent(group: Group) -> list[Point]:
    """Return accuracy over epsilon round by round, or where it ended if rounds do not tell."""
    points = group.curve(lambda row: row.epsilon, _accuracy)
    found = group.figures(lambda run: run.accuracy)
    end = group.mean(lambda run: run.epsilon)
    if points or not found or end is None:
        return points
    return [Point(end, sum(found) / len(found), min(found), max(found))]


class _Drawing:
    """A chart in the making: accuracy upwards, no text in it that a file brought along."""

    def __init__(self, name: str, title: str, across: str) -> None:
        self._name = name
        self._title = title
        self._keys: list[Key] = []
        self._across: list[float] = []
        with rc_context({"font.size": 11}):
            self._figure = Figure(figsize=_SIZE, layout="constrained")
            FigureCanvasSVG(self._figure)
            self.axis: Axes = self._figure.subplots()
        self._dress(across)

    @property
    def drawn(self) -> bool:
        """Whether there is any curve."""
        return bool(self._across)

    def _dress(self, across: str) -> None:
        axis = self.axis
        self._figure.patch.set_alpha(0)
        axis.patch.set_alpha(0)
        axis.set_xlabel(across, color=_INK)
        axis.set_ylabel("test accuracy", color=_INK)
        axis.tick_params(which="both", colors=_INK)
        axis.grid(color=_INK, alpha=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(_INK)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{round(100 * y, 2):g} %"))

    def curve(self, index: int, label: str, points: Sequence[Point]) -> None:
        """Draw the mean, and the range over seeds as a band."""
        if not points:
            return
        colour = self._key(index, label)
        across = [point.x for point in points]
        self._across += across
        self.axis.plot(
            across,
            [point.y for point in points],
            color=colour,
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle=_dash(index),
            markersize=5,
        )
        low, high = [point.low for point in points], [point.high for point in points]
        if low != high:
            self.axis.fill_between(across, low, high, color=colour, alpha=0.2, linewidth=0)

    def band(self, rows: Sequence[Row]) -> None:
        """Draw the spread over clients around the first curve."""
        pairs = [(row.round, row.accuracy or 0.0, row.spread or 0.0) for row in rows]
        self.axis.fill_between(
            [number for number, _, _ in pairs],
            [mean - spread for _, mean, spread in pairs],
            [mean + spread for _, mean, spread in pairs],
            color=_COLOURS[0],
            alpha=0.2,
            linewidth=0,
        )

    def level(self, index: int, label: str, value: float | None) -> None:
        """Draw a level line."""
        if value is not None:
            self.axis.axhline(value, color=self._key(index, label, "- -"), linestyle=(0, (6, 3)))

    def log_bytes(self) -> None:
        """Make the axis across one of bytes by powers of ten."""
        axis, low, high = self.axis, min(self._across), max(self._across)
        axis.set_xscale("log")
        # A range of 1 to 7 has two round numbers in it, wherever it begins.
        margin = max(1.5, math.sqrt(7 * low / high))
        axis.set_xlim(low / margin, high * margin)
        crowded = math.log10(high / low) > _CROWDED
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if crowded else (1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(_short_size))
        axis.xaxis.set_minor_formatter(NullFormatter())

    def finish(self) -> Chart | None:
        """Return the chart; None if nothing was drawn."""
        if not self.drawn:
            return None
        return Chart(_svg(self._figure, self._name, self._title), tuple(self._keys), self._title)

    def _key(self, index: int, label: str, glyph: str | None = None) -> str:
        colour = _COLOURS[index % len(_COLOURS)]
        self._keys.append(Key(label, colour, glyph or _GLYPHS[index % len(_GLYPHS)]))
        return colour


def _dash(index: int) -> str:
    return _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _short_size(value: float, _: object) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g} B"


def _svg(figure: Figure, name: str, title: str) -> Markup:
    """Return the figure as an SVG element that fits its place, with ids of its own."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text: the page's font, and findable.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(_INK, "currentColor")
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))  # noqa: S704


_DOT_AREA = 250  # square points, of the largest dot


_TICKS = 20


_COLUMNS = 10


_ROWS = 5


_GREY_CHANNELS = 1


_RGB_CHANNELS = 3


def draw_pictures(run: Run, folder: Path) -> None:
    """Draw label counts, accuracy over rounds and the last dreams of a run into its folder."""
    draw_labels(run.observer.label_counts, folder / "labels.png")
    if run.dreams:
        draw_dreams(run.dreams[-1], run.config.learning.kd_temperature, folder / "dreams.png")
    if run.observer.history:
        draw_accuracy(run.observer.history, folder / "accuracy.png")


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
    figure = Figure(figsize=(_COLUMNS, 1.25 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, chosen, strict=False):
        image = dreams.pixels[index]
        if len(image) == _RGB_CHANNELS:
            axis.imshow(image.transpose(1, 2, 0))
        else:
            axis.imshow(image[0], cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{labels[index]}: {confidence[index]:.0%}", fontsize=8)
    figure.savefig(path, dpi=120)


def draw_accuracy(history: Sequence[Measurement], path: Path) -> None:
    """Draw test accuracy over rounds: clients with their spread, independent training, student."""
    rounds = [m.round for m in history]
    mean = np.array([m.clients_mean for m in history])
    spread = np.array([m.clients_std for m in history])
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(rounds, mean, marker="o", label="Co-Dream clients (mean ± std)")
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
    figure.savefig(path, dpi=120)


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
    figure.savefig(path, dpi=120)


def _inches(entries: int) -> float:
    return float(np.clip(1.5 + 0.35 * entries, 4, 10))
