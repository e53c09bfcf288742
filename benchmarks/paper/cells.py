"""What the paper's tables and figures consist of: one run a row, at three scales.

Everything here is a table of constants and how it is laid out; `runs.py` runs it and
`pages.py` prints it. The paper's figures and settings are those of Singh et al., AAAI-25
(arXiv 2402.15968) and, where the text names none, of the official code's configuration files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.paper.runs import Run

Scale = Literal["tiny", "small", "full"]
Options = Mapping[str, object]


@dataclass(frozen=True)
class Printed:
    """A figure as the paper prints it, in percent; ``spread`` is over its clients and seeds."""

    value: float
    spread: float | None = None


def printed_table(text: str) -> dict[str, dict[str, Printed]]:
    """Read a table as the paper prints it: "69.6(1.0)" is 69.6 with a spread of 1.0.

    Args:
        text: a line of headings and then lines that begin with a name; underscores are spaces.

    Returns:
        Figures by line and heading.
    """
    (_, *headings), *lines = (line.split() for line in text.strip().splitlines())
    return {
        name.replace("_", " ", 1): dict(zip(headings, map(_printed, figures), strict=True))
        for name, *figures in lines
    }


def _printed(text: str) -> Printed:
    value, _, spread = text.rstrip(")").partition("(")
    return Printed(float(value), float(spread) if spread else None)


@dataclass(frozen=True)
class Column:
    """One figure of a row; that of another ``method`` takes that method's own run."""

    name: str
    reads: Callable[[Run], float | None]
    method: str = ""


@dataclass(frozen=True)
class Row:
    """One run, once a seed.

    Attributes:
        labels: what the row is called, by heading.
        options: of the run, without its seed.
        printed: the paper's figures by column.
        note: what a reader must know of this row.
    """

    labels: Mapping[str, str]
    options: Options
    printed: Mapping[str, Printed] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Artefact:
    """A table or a figure of the paper.

    Attributes:
        name: as in ``--only``.
        title: what it shows.
        notes: what differs from the paper's.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that its rows are compared with."""
        return tuple(column.method for column in self.columns if column.method)


def _other(name: str, method: str) -> Column:
    return Column(name, lambda run: run.others.get(method), method)


# What a run is read for --------------------------------------------------------------------------


def _independent(run: Run) -> float | None:
    return sum(run.independent) / len(run.independent)


def _clients(run: Run) -> float | None:
    return sum(run.clients) / len(run.clients)


def _server(run: Run) -> float | None:
    return run.server


def _gap(run: Run) -> float | None:
    clients = _clients(run)
    return None if run.server is None or clients is None else clients - run.server


def _alone(model: str) -> Callable[[Run], float | None]:
    """Read the independent accuracy of the clients that have one architecture."""

    def read(run: Run) -> float | None:
        names = zip(run.models, run.independent, strict=True)
        found = [accuracy for name, accuracy in names if name == model]
        return sum(found) / len(found)

    return read


# Settings ----------------------------------------------------------------------------------------

# R_adv is part of what the paper calls Co-Dream, though not a default of `simulate`. Clients have
# few examples, as in the paper (50 of MNIST): with more of the digits nobody needs the others.
_SETTINGS: dict[Scale, dict[str, object]] = {
    "tiny": {
        "dataset": "digits",
        "clients": 4,
        "samples_per_client": 100,
        "models": "resnet8",
        "rounds": 3,
        "dreams": 64,
        "dream_steps": 10,
        "kd_epochs": 10,
        "adaptive": "jsd",
    },
    "small": {
        "dataset": "digits",
        "clients": 4,
        "samples_per_client": 100,
        "models": "resnet8",
        "adaptive": "jsd",
    },
    "full": {
        "dataset": "cifar10",
        "clients": 4,
        "samples_per_client": 1000,
        "models": "resnet18",
        "method": "codream-fast",
        "rounds": 400,
        "dreams": 256,
        "dream_batches": 5,
        "dream_steps": 1,
        "local_steps": 5,
        "bits": 16,
        "entropy_weight": 0.5,
        "bn_weight": 10.0,
        "statistics_momentum": 0.9,
        "balance_weight": 0.0,
        "prior_correction": 0.0,
        "adaptive": "jsd",
        "adaptive_weight": 1.33,
        "adaptive_start": 15,
        "latent": 256,
        "generator_width": 64,
        "generator_lr": 5e-3,
        "latent_lr": 1.5e-3,
        "meta": "reptile",
        "meta_lr": 2.5e-2,
        "labels": "logits",
        "label_bits": 16,
        "acquisition": "two-stage",
        "kd_temperature": 20.0,
        "kd_epochs": 100,
        "kd_period": 5,
        "kd_batch": 256,
        "buffer": 25,
        "batch": 256,
        "warmup_epochs": 20,
        "local_epochs": 5,
    },
}

SEEDS: dict[Scale, tuple[int, ...]] = {"tiny": (0,), "small": (0, 1, 2), "full": (1, 2, 4)}

# Laid over "tiny": a first look in under two minutes whose figures mean nothing.
QUICK: Options = {
    "rounds": 1,
    "dreams": 8,
    "dream_steps": 1,
    "kd_epochs": 1,
    "warmup_epochs": 1,
}

SCALE_NOTES: dict[Scale, str] = {
    "tiny": "Structure only: one seed, other data, other models, pixels moved without a generator "
    "(plain CoDream, not CoDream-fast) and far less of everything than in the paper. The paper's "
    "figures stand beside ours to show the layout, not to compare with.",
    "small": "Other data and smaller models than the paper's, and plain CoDream, not "
    "CoDream-fast: trends may be compared, values may not.",
    "full": "The paper's data, models, rounds, batches and weights, for a GPU. What differs: "
    "models learn with Adam, not SGD; a tenth of each client's data is set aside to choose the "
    "round with; the generator stays on the server, its gradients are clipped and decayed; R_adv "
    "is -JSD as in the paper's text; gradients and logits have 16 bits; no augmentation.",
}

_PARTITIONS = {
    "iid": "iid",
    "alpha=10": "dirichlet:10",
    "alpha=1": "dirichlet:1",
    "alpha=0.1": "dirichlet:0.1",
}
_THREE = ("iid", "alpha=1", "alpha=0.1")

_STUDENT = Column("server student", _server)
_CO_DREAM = Column("Co-Dream", _clients)
_INDEPENDENT = Column("Independent", _independent)
_OTHERS = {
    name: _other(name, method)
    for name, method in {
        "Centralized": "centralized",
        "FedAvg": "fedavg",
        "FedProx": "fedprox",
        "Moon": "moon",
        "AvgKD": "avgkd",
        "SCAFFOLD": "scaffold",
        "FedGen": "fedgen",
    }.items()
}


# Table 1 -----------------------------------------------------------------------------------------

_ARCHITECTURES = {
    "WRN-16-1": "wrn16-1",
    "VGG-11": "vgg11",
    "WRN-40-1": "wrn40-1",
    "ResNet-34": "resnet34",
}
_PRINTED_1 = printed_table(
    """
    -          WRN-16-1  VGG-11  WRN-40-1  ResNet-34  Independent  Centralized  AvgKD      Co-Dream
    iid        52.2      55.1    43.5      54.2       51.6(4.5)    68.8         52.9(1.4)  69.6(1.0)
    alpha=10   19.1      23.6    27.6      16.2       19.7(1.7)    58.5         50.4(1.3)  62.2(2.6)
    alpha=1    41.3      38.2    37.1      50.1       41.7(5.1)    64.8         42.4(2.9)  60.0(1.7)
    alpha=0.1  29.1      22.3    33.1      21.5       27.2(4.9)    43.0         30.2(3.3)  40.6(0.9)
    """
)


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
            _CO_DREAM,
            _STUDENT,
        ),
        tuple(
            Row(
                {"partition": name},
                {**_SETTINGS[scale], **models, **narrow, "partition": _PARTITIONS[name]},
                printed,
            )
            for name, printed in _PRINTED_1.items()
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

# By the paper's data set, a column a partition as in _THREE.
_PRINTED_2 = {
    "mnist": printed_table(
        """
        -            iid        alpha=1    alpha=0.1
        Centralized  85.0(0.9)  61.4(7.1)  36.9(7.6)
        Independent  52.4(7.0)  36.3(6.2)  22.0(4.2)
        FedAvg       84.7(1.6)  60.3(3.4)  40.0(6.9)
        FedProx      78.6(3.5)  62.6(3.6)  38.1(11.0)
        Moon         85.1(2.6)  66.2(4.4)  42.3(11.8)
        AvgKD        61.3(2.3)  44.3(4.8)  21.4(4.3)
        SCAFFOLD     87.5(0.6)  70.2(3.6)  38.8(13.7)
        FedGen       64.5(1.9)  51.0(4.3)  31.4(7.4)
        Co-Dream     80.6(0.5)  57.7(3.6)  35.7(9.2)
        """
    ),
    "svhn": printed_table(
        """
        -            iid        alpha=1    alpha=0.1
        Centralized  80.8(1.3)  75.6(1.4)  54.6(13.6)
        Independent  51.3(9.2)  42.3(6.4)  19.6(9.2)
        FedAvg       82.9(0.4)  79.1(0.9)  47.1(23.7)
        FedProx      86.9(0.1)  84.3(0.6)  48.7(26.7)
        Moon         80.1(0.1)  76.5(1.2)  41.7(21.8)
        AvgKD        75.4(0.7)  61.2(4.6)  20.7(10.9)
        SCAFFOLD     86.0(0.1)  84.5(0.7)  13.5(4.4)
        FedGen       49.7(1.6)  44.2(4.1)  34.9(19.7)
        Co-Dream     81.4(0.1)  80.1(0.8)  44.5(17.7)
        """
    ),
    "cifar10": printed_table(
        """
        -            iid        alpha=1    alpha=0.1
        Centralized  65.7(2.9)  65.3(0.4)  45.5(6.8)
        Independent  46.4(2.0)  39.7(3.4)  23.5(5.2)
        FedAvg       67.2(0.4)  62.3(0.9)  34.8(8.3)
        FedProx      70.8(1.8)  62.3(2.9)  27.1(9.8)
        Moon         66.6(1.4)  64.8(0.8)  35.5(10.8)
        AvgKD        54.2(0.9)  46.4(3.3)  25.9(6.2)
        SCAFFOLD     73.9(1.5)  67.5(4.6)  22.8(7.8)
        FedGen       66.2(0.4)  62.8(1.8)  40.2(9.0)
        Co-Dream     69.5(0.3)  64.8(0.3)  36.6(8.4)
        """
    ),
}
_SAMPLES_2 = {"mnist": 50, "svhn": 1000, "cifar10": 1000}


def _table2(scale: Scale) -> Artefact:
    columns = {"Independent": _INDEPENDENT, "Co-Dream": _CO_DREAM, **_OTHERS}
    rows = tuple(
        Row(
            {"data": str(data["dataset"]), "the paper's": theirs, "partition": name},
            {**_SETTINGS[scale], **data, "partition": _PARTITIONS[name]},
            {method: figures[name] for method, figures in _PRINTED_2[theirs].items()},
        )
        for theirs, data in _data_2(scale).items()
        for name in _THREE
    )
    return Artefact(
        "table2",
        "Table 2: four clients with one architecture; the paper: ResNet-18",
        (*(columns[method] for method in _PRINTED_2["mnist"]), _STUDENT),
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
_PRINTED_5 = printed_table(
    """
    -                  iid        alpha=1    alpha=0.1
    Co-Dream           69.2(0.1)  61.6(0.5)  45.6(1.5)
    w/o_R_adv          65.7(0.2)  58.4(1.3)  42.0(1.4)
    w/o_R_bn           51.2(6.1)  33.1(7.1)  24.1(5.2)
    w/o_collaboration  64.4(0.5)  58.4(1.4)  30.8(3.2)
    """
)


def _table5(scale: Scale) -> Artefact:
    whole = _SETTINGS[scale]
    unopposed = {name: value for name, value in whole.items() if name not in _ADVERSARIAL}
    variants: dict[str, tuple[Options, str]] = {
        "Co-Dream": (whole, ""),
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
        (_CO_DREAM, _INDEPENDENT, _STUDENT),
        tuple(
            Row(
                {"variant": variant, "partition": name},
                {**options, "partition": _PARTITIONS[name]},
                {"Co-Dream": _PRINTED_5[variant][name]} if variant in _PRINTED_5 else {},
                note,
            )
            for variant, (options, note) in variants.items()
            for name in _THREE
        ),
        (
            "The column Co-Dream is the clients' mean under the row's variant.",
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
        (_CO_DREAM, _INDEPENDENT, _OTHERS["FedAvg"], _STUDENT),
        tuple(
            Row(
                {"K": str(clients), "examples each": str(total // clients)},
                {
                    **_SETTINGS[scale],
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


# Read off a picture in the official repository, at the last round, to 3 points either way.
_PRINTED_F4 = {1: 61.0, 2: 61.0, 5: 67.0, 10: 66.0, 20: 67.0}


def _figure4(scale: Scale) -> Artefact:
    batch = {} if scale == "full" else {"dreams": 16 if scale == "tiny" else 32}
    return Artefact(
        "figure4",
        "Figure 4: batches of dreams a round; the paper: CIFAR-10",
        (_STUDENT, _CO_DREAM, _INDEPENDENT),
        tuple(
            Row(
                {"batches": str(batches)},
                {
                    **_SETTINGS[scale],
                    **batch,
                    "partition": "iid",
                    "dream_batches": batches,
                    "buffer": 25,
                },
                {"server student": Printed(value, 3.0)},
            )
            for batches, value in _PRINTED_F4.items()
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
    base = {**_SETTINGS[scale], "partition": "iid"}
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
    return Artefact(found.name, found.title, found.columns, rows, found.notes)


def _adapted(row: Row, data: Path | None, *, quick: bool) -> Row:
    labels, options = dict(row.labels), dict(row.options)
    if data is not None:
        options["dataset"] = str(data)
        if "data" in labels:
            labels["data"] = data.name
    if quick:
        options |= QUICK
    return Row(labels, options, row.printed, row.note)
