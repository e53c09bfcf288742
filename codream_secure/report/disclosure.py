"""What the server learns, row by row as SECURITY.md has it, and of which runs it is true."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from codream_secure.baselines.methods import DREAMING, MODEL_AVERAGING, parse_method
from codream_secure.errors import UserError
from codream_secure.runs.reading import ALONE, TOGETHER

Summary = Mapping[str, Any]


class Disclosure(NamedTuple):
    """One row of the table.

    Attributes:
        what: the server learns, in Markdown.
        when: how often.
        applies: whether it does in the run of such a summary.
    """

    what: str
    when: str
    applies: Callable[[Summary], bool]


def _dreams(summary: Summary) -> bool:
    return summary.get("method") in DREAMING and summary.get("collaboration") is not False


def _with(name: str, *values: object) -> Callable[[Summary], bool]:
    return lambda summary: _dreams(summary) and summary.get(name) in values


def _releases(summary: Summary, name: str) -> bool:
    privacy = summary.get("privacy")
    found = privacy.get("releases") if isinstance(privacy, Mapping) else None
    return any(release.get("name") == name for release in found or ())


def _averages(summary: Summary) -> bool:
    try:
        return parse_method(str(summary.get("method"))).family in MODEL_AVERAGING
    except UserError:
        return False


# The text is SECURITY.md's; a test compares them.
DISCLOSURES = (
    Disclosure(
        "the exact sum of the survivors' quantized dream gradients, and how many and which they "
        "are",
        "every dream step",
        lambda summary: (
            _dreams(summary)
            and summary.get("dream_steps") != 0
            and not _releases(summary, "labels")
        ),
    ),
    Disclosure(
        "the exact sum of the survivors' quantized labels of the finished dreams (with "
        "`--label-last-step`: of the last step's dreams, together with that step's gradients)",
        "every batch",
        lambda summary: _dreams(summary) and not _releases(summary, "labels"),
    ),
    Disclosure(
        "with `--dp-unit client`: the sum of the survivors' labels of dreams that no client was "
        "asked for, with the noise of all survivors in it",
        "every batch",
        lambda summary: _releases(summary, "labels"),
    ),
    Disclosure(
        "with `--adaptive`: the exact sum of the gradients of R_adv with respect to the student's "
        "logits, dreams \N{MULTIPLICATION SIGN} classes numbers. With `kl` it is an affine "
        "function of the summed soft predictions where teacher and student agree, so it tells "
        "these at *every* step (D27)",
        "every dream step from `--adaptive-start` on",
        _with("adaptive", "jsd", "kl"),
    ),
    Disclosure(
        "with `--label-weighting confidence`: the exact sum of the survivors' confidences at every "
        "dream",
        "every batch",
        _with("label_weighting", "confidence"),
    ),
    Disclosure(
        "with `--weights examples`: the exact sum of the survivors' weights (how many examples "
        "they have, up to the public cap). Two such sums over sets that differ by one client tell "
        "that client's weight (D2); equal weights are the default for that reason. Gradient steps "
        "release no sum of weights",
        "every batch",
        _with("weights", "examples"),
    ),
    Disclosure(
        "`fedavg-secure` and the other averaging baselines under masks: the exact sum of the "
        "survivors' quantized model updates (SCAFFOLD: also of the changes of their control "
        "variates; with `--weights examples` each times its weight, and the sum of the weights)",
        "every round",
        lambda summary: _averages(summary) and summary.get("secure") is True,
    ),
    Disclosure(
        "with `--dp-eps`: the sum over all clients of every class's clipped images and of their "
        "counts, with the noise of all survivors in it (`--statistics-eps`)",
        "once",
        lambda summary: _dreams(summary) and _releases(summary, "class means"),
    ),
    Disclosure(
        "`dpsgd-secure`: the sum of all clients' clipped gradients, with the noise of all "
        "survivors in it",
        "every private step",
        lambda summary: _releases(summary, "summed gradients"),
    ),
    Disclosure(
        "everything that is computed from these: dreams, soft labels, the public clip, the "
        "server's student or model",
        "",
        lambda summary: (
            _dreams(summary)
            or _releases(summary, "summed gradients")
            or (_averages(summary) and summary.get("secure") is True)
        ),
    ),
)


def learned(summary: Summary) -> tuple[str, list[Disclosure]]:
    """Return what the server learns in a run: a sentence, and the rows that apply."""
    method = summary.get("method")
    if method == ALONE or (method != TOGETHER and summary.get("collaboration") is False):
        return "Nothing: no client sends anything.", []
    if method == TOGETHER:
        return "Everything: all data lies in one place.", []
    rows = [row for row in DISCLOSURES if row.applies(summary)]
    return _how(summary.get("secure"), listed=bool(rows)), rows


def _how(secure: object, *, listed: bool) -> str:
    if secure is True and listed:
        return "Sums over clients, never one client's input:"
    if secure is True:
        return "Sums over clients, under masks; SECURITY.md does not say of what."
    if secure is False:
        return "The input of every single client: nothing is masked."
    return "Unknown: whether inputs were masked is not on record."
