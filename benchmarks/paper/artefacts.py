"""What the paper's tables and figures consist of: one run a row, at three scales.

Everything here is constants and how they are laid out; `rows.py` runs a row and `pages.py` prints
it. The paper is Singh et al., AAAI-25 (arXiv 2402.15968).
"""

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.paper.printed import FIGURE_4, TABLE_1, TABLE_2, TABLE_5, Printed
from benchmarks.paper.rows import Artefact, Column, Row
from benchmarks.paper.scales import QUICK, SETTINGS, Options, Scale
from benchmarks.shared.federations import Outcome
from codream_secure.compare.results import headline
from codream_secure.config.methods import parse_method

# What a run is read for, after its reported round ------------------------------------------------


def _independent(run: Outcome) -> float:
    return statistics.mean(run.reported.independent)


def _clients(run: Outcome) -> float:
    return statistics.mean(run.reported.clients)


def _server(run: Outcome) -> float | None:
    return run.reported.server


def _gap(run: Outcome) -> float | None:
    server = _server(run)
    return None if server is None else _clients(run) - server


def _alone(model: str) -> Callable[[Outcome], float]:
    """Read the independent accuracy of the clients that have one architecture."""

    def read(run: Outcome) -> float:
        names = zip(run.summary.models, run.reported.independent, strict=True)
        return statistics.mean(accuracy for name, accuracy in names if name == model)

    return read


def _other(name: str) -> Column:
    method = parse_method(name.lower())
    return Column(name, lambda run: headline(run.reported, method), method.name)


# Settings ----------------------------------------------------------------------------------------

_PARTITIONS = {
    "iid": "iid",
    "alpha=10": "dirichlet:10",
    "alpha=1": "dirichlet:1",
    "alpha=0.1": "dirichlet:0.1",
}
_THREE = ("iid", "alpha=1", "alpha=0.1")

_STUDENT = Column("server student", _server)
_CODREAM = Column("CoDream", _clients)
_INDEPENDENT = Column("Independent", _independent)
_OTHERS = {
    name: _other(name)
    for name in ("Centralized", "FedAvg", "FedProx", "Moon", "AvgKD", "SCAFFOLD", "FedGen")
}


# Table 1 -----------------------------------------------------------------------------------------

_ARCHITECTURES = {
    "WRN-16-1": "wrn16-1",
    "VGG-11": "vgg11",
    "WRN-40-1": "wrn40-1",
    "ResNet-34": "resnet34",
}


def _table1(scale: Scale) -> Artefact:
    models = {"models": ",".join(_ARCHITECTURES.values())}
    # Deep models are slow on a CPU: narrow ones, and no more distillation than at the tiny scale.
    narrow = {} if scale == "full" else {"width": 8, "kd_epochs": 10}
    return Artefact(
        "table1",
        "Table 1: four clients with four architectures; the paper: CIFAR-10",
        (
            *(Column(name, _alone(model)) for name, model in _ARCHITECTURES.items()),
            _INDEPENDENT,
            _OTHERS["Centralized"],
            _OTHERS["AvgKD"],
            _CODREAM,
            _STUDENT,
        ),
        tuple(
            Row(
                {"partition": name},
                {**SETTINGS[scale], **models, **narrow, "partition": _PARTITIONS[name]},
                printed,
            )
            for name, printed in TABLE_1.items()
        ),
        (
            "A column with an architecture's name is that client's independent training.",
            (
                "The server's student is a WRN-16-1, the first client's architecture; the paper's "
                "is a ResNet-18. Centralized is one model of the student's architecture."
            ),
            (
                "The paper's Independent figure of alpha=10 is not the mean of its four clients "
                "(21.6), and is below that of alpha=1: probably a misprint."
            ),
        ),
    )


# Table 2 -----------------------------------------------------------------------------------------

_SAMPLES_2 = {"mnist": 50, "svhn": 1000, "cifar10": 1000}


def _table2(scale: Scale) -> Artefact:
    columns = {"Independent": _INDEPENDENT, "CoDream": _CODREAM, **_OTHERS}
    rows = tuple(
        Row(
            {"data": str(data["dataset"]), "the paper's": theirs, "partition": name},
            {**SETTINGS[scale], **data, "partition": _PARTITIONS[name]},
            {method: figures[name] for method, figures in TABLE_2[theirs].items()},
        )
        for theirs, data in _data_2(scale).items()
        for name in _THREE
    )
    return Artefact(
        "table2",
        "Table 2: four clients with one architecture; the paper: ResNet-18",
        (*(columns[method] for method in TABLE_2["mnist"]), _STUDENT),
        rows,
        ("Transposed: the paper has a row a method and a column a partition.",),
    )


def _data_2(scale: Scale) -> dict[str, dict[str, object]]:
    """Return the options of every data set, by the paper's name of what it stands for."""
    if scale == "full":
        return {
            name: {"dataset": name, "samples_per_client": samples}
            for name, samples in _SAMPLES_2.items()
        }
    return {"mnist": {"dataset": "digits"}}


# Table 5 -----------------------------------------------------------------------------------------

_ADVERSARIAL = ("adaptive", "adaptive_weight", "adaptive_start")


def _table5(scale: Scale) -> Artefact:
    whole = SETTINGS[scale]
    unopposed = {name: value for name, value in whole.items() if name not in _ADVERSARIAL}
    variants: dict[str, tuple[Options, str]] = {
        "CoDream": (whole, ""),
        "w/o R_adv": (unopposed, ""),
        "w/o R_bn": ({**whole, "bn_weight": 0.0, "statistics_momentum": 0.0}, ""),
        "w/o entropy": ({**whole, "entropy_weight": 0.0}, "not in the paper"),
        "w/o collaboration": (
            {**unopposed, "collaboration": False},
            (
                "every client dreams alone, so nothing is sent or masked, and without a server's "
                "student there is no R_adv"
            ),
        ),
    }
    return Artefact(
        "table5",
        "Table 5: what each part of the dreaming loss is worth; the paper: CIFAR-10",
        (_CODREAM, _INDEPENDENT, _STUDENT),
        tuple(
            Row(
                {"variant": variant, "partition": name},
                {**options, "partition": _PARTITIONS[name]},
                {"CoDream": TABLE_5[variant][name]} if variant in TABLE_5 else {},
                note,
            )
            for variant, (options, note) in variants.items()
            for name in _THREE
        ),
        (
            "The column CoDream is the clients' mean under the row's variant.",
            "The paper's first row is not that of its Table 2 (69.5, 64.8, 36.6).",
        ),
    )


# Figures -----------------------------------------------------------------------------------------

_TOTAL: dict[Scale, int] = {"tiny": 960, "small": 1344, "full": 24_000}
CLIENTS_3 = (2, 4, 8, 12, 24)


def _figure3(scale: Scale) -> Artefact:
    total = _TOTAL[scale]
    return Artefact(
        "figure3",
        f"Figure 3: number of clients K, {total} examples in all; the paper: CIFAR-10",
        (_CODREAM, _INDEPENDENT, _OTHERS["FedAvg"], _STUDENT),
        tuple(
            Row(
                {"K": str(clients), "examples each": str(total // clients)},
                {
                    **SETTINGS[scale],
                    "clients": clients,
                    "samples_per_client": total // clients,
                    "partition": "iid",
                    **({"secure": False} if clients < 3 else {}),
                },
                note=""
                if clients >= 3
                else "without secure aggregation: with two clients each learns the other's input",
            )
            for clients in CLIENTS_3
        ),
        (
            "The paper's values are not known to us.",
            (
                "It says that accuracy falls more slowly than K grows, and that the gap to "
                "Independent widens."
            ),
        ),
    )


def _figure4(scale: Scale) -> Artefact:
    batch = {} if scale == "full" else {"dreams": 16 if scale == "tiny" else 32}
    return Artefact(
        "figure4",
        "Figure 4: batches of dreams a round; the paper: CIFAR-10",
        (_STUDENT, _CODREAM, _INDEPENDENT),
        tuple(
            Row(
                {"batches": str(batches)},
                {
                    **SETTINGS[scale],
                    **batch,
                    "partition": "iid",
                    "dream_batches": batches,
                    "buffer": 25,
                },
                {"server student": Printed(value, 3.0)},
            )
            for batches, value in FIGURE_4.items()
        ),
        (
            "The paper's figures are read off a picture, to 3 points either way, at round 400.",
            (
                "The buffer holds 25 batches, as in the paper: with few batches a round it is not "
                "full in a short run."
            ),
        ),
    )


_TEACHERS: dict[Scale, tuple[tuple[int, ...], tuple[Options, ...]]] = {
    "tiny": ((40, 100, 300), ({"width": 4}, {"width": 8}, {"width": 16})),
    "small": ((40, 100, 200, 340), ({"width": 4}, {"width": 8}, {"width": 16})),
    "full": (
        (250, 1000, 4000, 12_000),
        ({"models": "wrn16-1"}, {"models": "resnet18"}, {"models": "resnet34"}),
    ),
}


def _figure5(scale: Scale) -> Artefact:
    samples, sizes = _TEACHERS[scale]
    base = {**SETTINGS[scale], "partition": "iid"}
    return Artefact(
        "figure5",
        "Figure 5: teachers and the student that sees dreams alone",
        (Column("teachers", _clients), _STUDENT, Column("gap", _gap), _INDEPENDENT),
        (
            *(
                Row({"varied": "examples", "teacher": str(n)}, {**base, "samples_per_client": n})
                for n in samples
            ),
            *(
                Row(
                    {"varied": "model", "teacher": " ".join(f"{k} {v}" for k, v in size.items())},
                    {**base, **size},
                )
                for size in sizes
            ),
        ),
        (
            (
                "The paper's values, and whether its teachers differ in data or in model size, are "
                "not known to us: both are here. It says that the gap does not grow for weak "
                "teachers."
            ),
            "The student has its teachers' architecture. Teachers go on learning from dreams.",
        ),
    )


ARTEFACTS: dict[str, Callable[[Scale], Artefact]] = {
    "table1": _table1,
    "table2": _table2,
    "table5": _table5,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
}


def artefact(name: str, scale: Scale, *, data: Path | None = None, quick: bool = False) -> Artefact:
    """Return a table or a figure with the options of its runs.

    Args:
        name: one of `ARTEFACTS`.
        scale: how much of everything.
        data: an .npz file in place of the digits; not for "full".
        quick: with "tiny": cut everything to the bone.
    """
    found = ARTEFACTS[name](scale)
    rows = tuple(_adapted(row, data, quick=quick) for row in found.rows)
    return dataclasses.replace(found, rows=rows)


def _adapted(row: Row, data: Path | None, *, quick: bool) -> Row:
    labels, options = dict(row.labels), dict(row.options)
    if data is not None:
        options["dataset"] = str(data)
        if "data" in labels:
            labels["data"] = data.name
    if quick:
        options |= QUICK
    return Row(labels, options, row.printed, row.note)
