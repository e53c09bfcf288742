"""What one round of dreams is worth to clients of four architectures, beside real images.

    python -m benchmarks.choices.dream_choices --data fashion-mnist-12k.npz
    ... --data FILE --quick     three rows, fewer steps
    ... --data FILE --record    also write results/dream_choices.*

Four clients are trained once on 250 examples each of the first half of the training part, and
measured on 2,000 examples of the second: the test part is never touched. Then every row starts
from these clients, gives them 512 images with the ensemble's labels, and measures them after the
same number of joint steps; `student` is a fresh model that saw the labelled images alone.
"""

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning.settings import FOUR
from benchmarks.shared.gates import Report, environment, progress
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import check_npz, finish, parser
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset, load_dataset
from codream_secure.data.examples import Examples
from codream_secure.dreaming.buffer import DreamBuffer
from codream_secure.dreaming.group import DreamGroup
from codream_secure.federation.simulation import Simulation
from codream_secure.learning.acquisition import AcquisitionSettings, acquire, distil
from codream_secure.models.evaluate import accuracy
from codream_secure.runtime.parallel import in_parallel, one_core_each
from codream_secure.runtime.seeds import generator

COMMON: dict[str, Any] = {
    "clients": 4,
    "samples_per_client": 250,
    "models": FOUR,
    "secure": False,  # masks change no bit
    "kd_temperature": 2.0,
    "dream_batches": 4,
    "buffer": 4,
    "seed": 0,
}
FAST = {"method": "codream-fast", "dreams": 128}
ROWS: dict[str, dict[str, Any]] = {
    "real images": {},
    "real images, no prior correction": {"prior_correction": 0.0},
    "noise": {"dream_steps": 0},
    "pixels, 20 steps": {},
    "pixels, 20 steps, total variation 10": {"tv_weight": 10.0},
    "generator, 5 steps": FAST,
    "generator, 10 steps": {**FAST, "dream_steps": 10},
    "generator, 5 steps of 0.02": {**FAST, "generator_lr": 0.02},
    "generator, 5 steps, total variation 1": {**FAST, "tv_weight": 1.0},
    "generator, 5 steps, running statistics": {**FAST, "statistics_momentum": 0.9},
}
QUICK = ("noise", "pixels, 20 steps", "generator, 5 steps")
IMAGES, HELD_OUT = 512, 2000


def halves(data: Dataset) -> Dataset:
    """Return the training part alone: its first half to train on, and 2,000 others to measure."""
    middle = len(data.x_train) // 2
    held_out = slice(middle, middle + HELD_OUT)
    return dataclasses.replace(
        data,
        x_train=data.x_train[:middle],
        y_train=data.y_train[:middle],
        x_test=data.x_train[held_out],
        y_test=data.y_train[held_out],
    )


def images_of(
    simulation: Simulation, options: dict[str, Any], real: torch.Tensor | None
) -> DreamBuffer:
    """Return labelled images: real ones, or the dreams of the clients as they are now."""
    config = resolve(Config.from_options({**COMMON, **options}))
    everybody = simulation.federation
    clients = {c: member.client for c, member in everybody.members.items()}
    group = DreamGroup(
        ("choices",), clients, simulation.aggregator, config, everybody.spec, everybody.scale,
        torch.device("cpu"), 0,
    )  # fmt: skip
    group.begin_round(1)
    if real is None:
        group.synthesise(1, None, lambda: None)
        return group.buffer
    total = torch.zeros(len(real), everybody.spec.classes)
    for client in clients.values():
        teacher = client.teacher
        if not config.dream.prior_correction:
            teacher = dataclasses.replace(teacher, adjustment=None)
        with torch.no_grad():
            logits = teacher(real)
        total += (logits / config.learning.kd_temperature).softmax(dim=1) / len(clients)
    buffer = DreamBuffer(1)
    buffer.add(real, total)
    return buffer


def learned(
    simulation: Simulation, buffer: DreamBuffer, epochs: int, test: Examples
) -> dict[str, float]:
    """Let copies of the clients and of a fresh student learn from the images."""
    settings = AcquisitionSettings(
        order="joint", kd_epochs=epochs, kd_batch=128, kd_temperature=COMMON["kd_temperature"],
        augmentation="none", local_steps=0,
    )  # fmt: skip

    def learn(client: int) -> float:
        learner = copy.deepcopy(simulation.federation.members[client].client.learner)
        acquire(learner, buffer, settings, generator(0, "choices", client))
        return accuracy(learner.model, test)

    clients = list(in_parallel(learn, simulation.federation.roster))
    student = copy.deepcopy(simulation.federation.student)
    distil(student, buffer, settings, generator(0, "choices", "student"))
    return row_of(simulation.federation.model_names, clients, accuracy(student.model, test))


class Trained:
    """Clients after their local training, which is done when a cell first needs it."""

    def __init__(self, path: Path, partition: str) -> None:
        self.whole = load_dataset(str(path), Path("data"))
        self.config = Config.from_options({**COMMON, "partition": partition})

    @cached_property
    def simulation(self) -> Simulation:
        """The trained clients."""
        progress("local training")
        simulation = Simulation(self.config, dataset=halves(self.whole))
        simulation.warm_up()
        return simulation

    @property
    def test(self) -> Examples:
        """What models are measured on."""
        data, scale = halves(self.whole), self.simulation.federation.scale
        images = scale.scale(torch.from_numpy(data.x_test))
        return Examples(images, torch.from_numpy(data.y_test))

    def before(self) -> dict[str, float]:
        """Measure the clients as they are."""
        everybody = self.simulation.federation
        clients = [accuracy(model, self.test) for model in everybody.client_models().values()]
        return row_of(everybody.model_names, clients, accuracy(everybody.student.model, self.test))

    def after(self, name: str, epochs: int) -> dict[str, float]:
        """Measure copies of the clients that learned from a row's images."""
        start = len(self.whole.x_train) // 2 + HELD_OUT
        rest = torch.from_numpy(self.whole.x_train[start : start + IMAGES])
        real = self.simulation.federation.scale.scale(rest) if name.startswith("real") else None
        buffer = images_of(self.simulation, ROWS[name], real)
        return learned(self.simulation, buffer, epochs, self.test)


def row_of(models: Sequence[str], clients: list[float], student: float) -> dict[str, float]:
    """Return a row: the clients' mean, each client, and the student."""
    each = zip(models, clients, strict=True)
    return {"clients": float(np.mean(clients)), **dict(each), "student": student}


def main() -> None:
    """Train once, then compare."""
    arguments = parser(__doc__, "three rows, fewer steps")
    arguments.add_argument("--data", type=Path, required=True, help=".npz of 28x28 images")
    arguments.add_argument("--partition", default="dirichlet:1")
    options = arguments.parse_args()
    check_npz(arguments, options.data)
    trained, grid = Trained(options.data, options.partition), Grid(options.keep)
    epochs = 2 if options.quick else 15
    common = {
        **COMMON,
        "dataset": str(options.data),
        "partition": options.partition,
        "epochs": epochs,
    }
    kind = dict[str, float]
    with one_core_each():
        rows = [grid.result("none, as trained", common, trained.before, kind)]
        names = QUICK if options.quick else tuple(ROWS)
        for name in names:
            settings = {**common, **ROWS[name]}
            rows.append(grid.result(name, settings, partial(trained.after, name, epochs), kind))
    labels = ("none, as trained", *names)
    title = f"one round, {options.partition}, accuracy on held-out training examples"
    table = [{"images": label, **row} for label, row in zip(labels, rows, strict=True)]
    finish(Report(title, table, notes=environment("torch")), options, "dream_choices")


if __name__ == "__main__":
    main()
