"""The page about one run or several: a single HTML file that loads nothing else."""

import base64
import platform
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from codream_secure._version import __version__
from codream_secure.audit.findings import PrivacyAudit
from codream_secure.errors import WriteError
from codream_secure.report import charts
from codream_secure.report.disclosure import Disclosure, learned
from codream_secure.report.drawing import own_settings
from codream_secure.report.groups import Group, differing, group
from codream_secure.report.page_answer import Headline, accuracy, answer, epsilon, reach
from codream_secure.report.text import UNKNOWN, number, percent, size
from codream_secure.runs.comparison_folder import matched, missing, rerun
from codream_secure.runs.reading import read_all
from codream_secure.runs.recorded_run import ALONE, TOGETHER, RecordedRun
from codream_secure.storage.files import replace

PAGE = "report.html"
_TEMPLATE = "page.html.j2"
_PNG = b"\x89PNG\r\n\x1a\n"
_HEADINGS = (
    "method",
    "partition",
    "clients",
    "seeds",
    "test accuracy",
    "sent",
    "received",
    "ε",
    "rounds",
    "seconds",
    "iterations",
)


@dataclass(frozen=True, slots=True)
class Bar:
    """Bytes of one phase in one direction; ``share`` is that of the longest bar, in per cent."""

    amount: str
    share: float


@dataclass(frozen=True, slots=True)
class Phases:
    """Bars of one group: phase, up, down."""

    label: str
    rows: tuple[tuple[str, Bar, Bar], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a run as a data URI."""

    caption: str
    uri: str


@dataclass(frozen=True, slots=True)
class Learned:
    """What the server learns in the runs of these groups."""

    labels: str
    sentence: str
    rows: tuple[Disclosure, ...]


def write_page(folders: Sequence[Path], path: Path, command: str) -> Headline:
    """Write one page about the runs in ``folders``; a comparison stands for all its cells.

    Args:
        folders: of runs or comparisons, at least one.
        path: of the HTML file; replaced if it is there.
        command: that makes again what the page shows.

    Returns:
        The question and answer on top of the page.

    Raises:
        UserError: a folder is no run or is damaged, runs cannot be compared, or the page cannot be
            written.
    """
    notes = [text for folder in folders if (text := matched(folder))]
    notes += [
        f"No result of {name}: {why}" for folder in folders for name, why in missing(folder).items()
    ]
    with own_settings():
        text, told = _render(read_all(folders), command, notes)
    replace(path, text)
    return told


def _render(
    runs: Sequence[RecordedRun], command: str, notes: Sequence[str]
) -> tuple[str, Headline]:
    """Return the page as a text, and its answer."""
    groups = sorted(group(runs), key=lambda one: -(accuracy(one) or 0.0))
    told = answer(groups)
    environment = Environment(
        loader=PackageLoader("codream_secure", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = _markdown
    text = environment.get_template(_TEMPLATE).render(
        title=_title(groups),
        answer=told,
        headings=_HEADINGS,
        rows=[_headline(one) for one in groups],
        asides=[*notes, *_asides(groups)],
        unknown=UNKNOWN,
        rounds=charts.over_rounds(groups),
        bytes=charts.over_bytes(groups),
        epsilon=charts.over_epsilon(groups),
        any_private=any(run.private for run in runs),
        numbers=[(one.label, list(_numbers(one))) for one in groups],
        phases=list(_phases(groups)),
        labels=_pictures(groups, "labels.png", once=True),
        dreams=_pictures(groups, "dreams.png"),
        learned=_learned(groups),
        audits=[(run.folder.name, found) for run in runs if (found := _audit(run.folder))],
        settings=[(one.label, one.first.seed, one.first.config_text) for one in groups],
        versions=_versions(),
        command=command,
        reruns=_reruns(runs, command),
    )
    return text, told


def _title(groups: Sequence[Group]) -> str:
    dataset = groups[0].first.dataset or "unknown data"
    if len(groups) > 1:
        return f"{len(groups)} kinds of runs on {dataset}"
    return f"{groups[0].label} on {dataset}, {groups[0].first.partition or 'unknown partition'}"


def _headline(one: Group) -> list[tuple[str, str]]:
    """Return the cells of a group's row, each with its small print."""
    first = one.first
    up, down = one.mean(lambda run: run.bytes_up), one.mean(lambda run: run.bytes_down)
    nothing = not one.sends and not up and not down
    spread = one.mean(lambda run: run.spread)
    reached = percent(accuracy(one))
    if spread is not None:
        reached += f" ± {100 * spread:.1f}"
    finished = {_finished(run) for run in one.runs}
    return [
        (one.label, _caution(first)),
        (first.partition or UNKNOWN, ""),
        (UNKNOWN if first.clients is None else str(first.clients), ""),
        (", ".join(str(run.seed) for run in one.runs), ""),
        (_whole(reached), "; ".join(filter(None, (_whose(first), reach(one))))),
        ("nothing" if nothing else _whole(size(up)), ""),
        ("nothing" if nothing else _whole(size(down)), ""),
        (epsilon(one), _whole(f"δ = {first.delta:g}") if first.delta is not None else ""),
        (", ".join(sorted(finished)), ""),
        (number(one.mean(lambda run: run.seconds)), ""),
        (number(one.mean(lambda run: run.iterations)), ""),
    ]


def _whose(run: RecordedRun) -> str:
    return "one model for all" if run.one_model else ""


def _finished(run: RecordedRun) -> str:
    rounds = run.rounds
    return str(run.rounds_finished) + ("" if rounds is None else f" of {rounds}")


def _whole(text: str) -> str:
    """Return a text that no browser breaks into two lines."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _caution(run: RecordedRun) -> str:
    if run.summary is None:
        return "not finished: the last round there is"
    if run.sends and run.secure is False:
        return "the server sees every client's input"
    return ""


def _asides(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the sentences below the table."""
    for method, names in differing(groups).items():
        yield f"The rows of {method} differ in: {', '.join(names)}."
    for one in groups:
        if len(groups) == 1 and (alone := one.mean(lambda run: run.independent)) is not None:
            yield f"Training alone, measured in the same run: {percent(alone)}."
        if len(groups) == 1 and (server := one.mean(lambda run: run.student)) is not None:
            yield f"The server's student, which saw dreams alone: {percent(server)}."
        if one.method == TOGETHER:
            yield (
                f"{one.label}: sends nothing here; all data lies in one place, and the bytes of "
                "bringing it there are not counted."
            )
        elif not one.sends:
            why = "every client trains" if one.method == ALONE else "every client dreams"
            yield f"{one.label}: sends nothing; {why} alone."
        if one.first.seeded_noise:
            yield f"{one.label}: whoever knows the seed can remove the noise; experiment only."


def _numbers(one: Group) -> Iterator[list[str]]:
    for run in one.runs:
        for row in run.rounds_done:
            yield [
                str(run.seed),
                str(row.round),
                percent(row.accuracy),
                size(row.bytes_up),
                size(row.bytes_down),
                number(row.iterations),
                number(row.seconds),
                UNKNOWN if row.epsilon is None else f"{row.epsilon:.3g}",
            ]


def _phases(groups: Sequence[Group]) -> Iterator[Phases]:
    for one in groups:
        table = one.phases()
        longest = max((max(pair) for pair in table.values()), default=0.0)
        rows = [
            (name.replace("_", " "), _bar(up, longest), _bar(down, longest))
            for name, (up, down) in table.items()
        ]
        if rows:
            yield Phases(one.label, tuple(rows))


def _bar(count: float, longest: float) -> Bar:
    return Bar(size(count), 100 * count / longest)


def _pictures(groups: Sequence[Group], name: str, *, once: bool = False) -> list[Picture]:
    """Return a picture of the first run of each group; with ``once`` equal pictures once."""
    found: dict[bytes | str, Picture] = {}
    for one in groups:
        data = _png(one.first.folder / name)
        if data is None:
            continue
        partition = one.first.partition or UNKNOWN
        caption = f"partition {partition}" if once else one.label
        picture = Picture(f"{caption}, seed {one.first.seed}", _uri(data))
        found.setdefault(data if once else one.label, picture)
    return list(found.values())


def _png(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if data.startswith(_PNG) else None


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _learned(groups: Sequence[Group]) -> list[Learned]:
    found: dict[tuple[str, tuple[Disclosure, ...]], list[str]] = {}
    for one in groups:
        sentence, rows = learned(one.first.summary)
        found.setdefault((sentence, tuple(rows)), []).append(one.label)
    return [Learned(", ".join(names), *key) for key, names in found.items()]


def _audit(folder: Path) -> PrivacyAudit | None:
    """Return what `codream-secure audit privacy` left in a folder, if it did."""
    try:
        return msgspec.json.decode((folder / "audit.json").read_bytes(), type=PrivacyAudit)
    except (OSError, ValueError, RecursionError):
        return None


def _versions() -> list[tuple[str, str]]:
    """Return the versions of the software that wrote the page, without importing it."""
    return [
        ("codream-secure", __version__),
        ("python", platform.python_version()),
        *((name, _version(name)) for name in ("torch", "numpy")),
        ("platform", platform.platform()),
    ]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def _reruns(runs: Iterable[RecordedRun], command: str) -> list[str]:
    commands = list(dict.fromkeys(rerun(run.folder) for run in runs))
    return [] if commands == [command] else commands


def _markdown(text: str) -> Markup:
    """Return Markdown's `code` and *stress* as HTML, and everything else escaped."""
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", safe))  # noqa: S704 - escaped above


def write_report(folder: Path) -> None:
    """Write report.html of a run or a comparison; warn if that fails, since results are kept.

    Raises:
        WriteError: the disk is full, or the folder is not to be written to.
    """
    try:
        write_page([folder], folder / PAGE, rerun(folder))
    except WriteError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the results are on disk
        warnings.warn(f"{folder / PAGE} was not written: {error}", stacklevel=2)
