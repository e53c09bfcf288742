"""SECURITY.md's table of what the server learns, and of which runs each row is true."""

from collections.abc import Callable
from typing import NamedTuple

from codream_secure.config.methods import CLASS_ROWS, SUMMING, parse_method
from codream_secure.errors import UserError
from codream_secure.runs.formats import Dreaming, Summary
from codream_secure.runs.recorded_run import ALONE, TOGETHER


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
    return summary.dreaming is not None and summary.dreaming.collaboration


def _dreams_with(chosen: Callable[[Dreaming], bool]) -> Callable[[Summary], bool]:
    """Return whether clients dream together with settings that ``chosen`` accepts."""
    return lambda summary: (
        summary.dreaming is not None and summary.dreaming.collaboration and chosen(summary.dreaming)
    )


def _common_model(summary: Summary) -> bool:
    return summary.method == "codream-messenger"


def _releases(summary: Summary, name: str) -> bool:
    releases = summary.privacy.releases if summary.privacy else ()
    return any(release.name == name for release in releases)


def _family(summary: Summary) -> str:
    try:
        return parse_method(summary.method).family
    except UserError:
        return ""


def _sums_masked(summary: Summary) -> bool:
    return _family(summary) in SUMMING and summary.protocol.secure


def _sums_rows(summary: Summary) -> bool:
    return _sums_masked(summary) and _family(summary) in CLASS_ROWS


# The text is SECURITY.md's; a test compares them.
DISCLOSURES = (
    Disclosure(
        "the exact sum of the survivors' quantized dream gradients, and how many and which they "
        "are",
        "every dream step",
        lambda summary: (
            _dreams_with(lambda chosen: chosen.dream_steps > 0)(summary)
            and not _releases(summary, "labels")
            and not _common_model(summary)
        ),
    ),
    Disclosure(
        "the exact sum of the survivors' quantized labels of the finished dreams (with "
        "`--label-last-step`: of the last step's dreams, together with that step's gradients)",
        "every batch",
        lambda summary: (
            _dreams(summary)
            and not _releases(summary, "labels")
            and not (_common_model(summary) and summary.privacy)
        ),
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
        _dreams_with(lambda chosen: chosen.adaptive in ("jsd", "kl")),
    ),
    Disclosure(
        "with `--label-weighting confidence`: the exact sum of the survivors' confidences at every "
        "dream",
        "every batch",
        _dreams_with(lambda chosen: chosen.label_weighting == "confidence"),
    ),
    Disclosure(
        "with `--weights examples`: every dream gradient counts times its client's weight (how "
        "many examples it has, up to the public cap). No sum of weights is released, and labels "
        "count alike, since weighted ones would tell it. But whoever knows a part that all "
        "gradients have in common reads the sum of weights from them, and from two such sums over "
        "sets that differ by one client that client's weight (D2)",
        "every dream step",
        lambda summary: _dreams(summary) and summary.weights == "examples",
    ),
    Disclosure(
        "`--method codream-messenger`: the exact sum of the survivors' quantized changes of "
        "the common model, each after the same number of local steps. *As in all model "
        "averaging this tells of local data*: a change follows gradients of the client's "
        "pictures, and two sums over sets that differ by one client tell that client's change"
        " (D1). With `--local-loss balanced` a client's gradients also depend on its class "
        "counts. No client's own model is sent, dreams are made by the server, and no "
        "gradient of dreams is answered",
        "`--messenger-sums` times a round",
        lambda summary: _common_model(summary) and summary.protocol.secure and not summary.privacy,
    ),
    Disclosure(
        "`fedavg-secure` and the other averaging baselines under masks: the exact sum of the "
        "survivors' quantized model updates (SCAFFOLD: also of the changes of their control "
        "variates; LG-FedAvg: of the classifiers alone; messenger, FML, FedKD, FedMRL: of the "
        "small common model alone; with `--weights examples` each times its weight, and the sum of "
        "the weights)",
        "every round",
        lambda summary: _sums_masked(summary) and not _sums_rows(summary),
    ),
    Disclosure(
        "`fd-secure`, `fedproto-secure`: for every class the exact sum of the survivors' "
        "quantized mean predictions (FD) or mean features (FedProto), and how many of them have "
        "the class. Where that is one, the sum is that client's own",
        "every round",
        _sums_rows,
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
            _dreams(summary) or _releases(summary, "summed gradients") or _sums_masked(summary)
        ),
    ),
)


def learned(summary: Summary | None) -> tuple[str, list[Disclosure]]:
    """Return what the server learns in a run: a sentence, and the rows that apply.

    Args:
        summary: of the run; None if it was cut off before it wrote one.
    """
    if summary is None:
        return "Unknown: whether inputs were masked is not on record.", []
    alone = summary.dreaming is not None and not summary.dreaming.collaboration
    if alone or summary.method == ALONE:
        return "Nothing: no client sends anything.", []
    if summary.method == TOGETHER:
        return "Everything: all data lies in one place.", []
    rows = [row for row in DISCLOSURES if row.applies(summary)]
    return _how(secure=summary.protocol.secure, listed=bool(rows)), rows


def _how(*, secure: bool, listed: bool) -> str:
    if not secure:
        return "The input of every single client: nothing is masked."
    if listed:
        return "Sums over clients, never one client's input:"
    return "Sums over clients, under masks; SECURITY.md does not say of what."
