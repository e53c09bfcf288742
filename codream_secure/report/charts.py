"""The charts of a page, as SVG elements that take the colours of the page."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from codream_secure.report.groups import Group, Point
from codream_secure.runs.recorded_run import RoundFigures

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
    """Draw accuracy over rounds; for a single group, also training alone and the student."""
    drawing = _Drawing("rounds", "Test accuracy over rounds", "round")
    for index, group in enumerate(groups):
        drawing.curve(index, group.label, group.curve(_round, _accuracy))
    if len(groups) == 1:
        only = groups[0]
        if len(only.runs) == 1 and not only.first.one_model:
            drawing.band([row for row in only.first.rounds_done if row.accuracy is not None])
        alone = only.curve(_round, lambda row: row.independent)
        drawing.curve(1, "training alone", alone)
        drawing.curve(2, "server's student", only.curve(_round, lambda row: row.student))
    drawing.axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return drawing.finish()


def over_bytes(groups: Sequence[Group]) -> Chart | None:
    """Draw accuracy over the bytes of one client; a method that sends nothing is a level line."""
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


def _round(row: RoundFigures) -> float:
    return row.round


def _accuracy(row: RoundFigures) -> float | None:
    return row.accuracy


def _spent(group: Group) -> list[Point]:
    """Return accuracy over epsilon for every round, or only the last if rows have no epsilon."""
    points = group.curve(lambda row: row.epsilon, _accuracy)
    found = group.figures(lambda run: run.accuracy)
    end = group.mean(lambda run: run.epsilon)
    if points or not found or end is None:
        return points
    return [Point(end, sum(found) / len(found), min(found), max(found))]


class _Drawing:
    """A chart while it is drawn. No text of a file stands in it: labels are in the legend."""

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

    def band(self, rows: Sequence[RoundFigures]) -> None:
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
        """Scale the x-axis logarithmically, and label it in bytes."""
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
    """Return the figure as an SVG element as wide as its place; its ids begin with ``name``."""
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
