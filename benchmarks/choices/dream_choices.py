"""What one round of dreams is worth to clients of four architectures, beside real images.

    python -m benchmarks.choices.dream_choices --data fashion-mnist-12k.npz
    ... --data FILE --quick     three rows, fewer steps
    ... --data FILE --record    also write results/dream_choices.*

Four clients are trained once on 250 examples each of the first half of the training part, and
measured on 2,000 examples of the second: the test part is never touched. Then every row starts
from these clients, gives them 512 images with the ensemble's labels, and measures them after the
same number of joint steps; `student` is a fresh model that saw the labelled images alone.
"""

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared.gates import environment, progress, report
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

RESULTS = Path(__file__).parents[1] / "results"
COMMON = {
    "clients": 4,
    "samples_per_client": 250,
    "models": "lenet5,resnet8,wrn16-1,mlp",
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
    members = list(everybody.members.values())
    group = DreamGroup(
        ("choices",), members, simulation.aggregator, config, everybody.spec, everybody.scale,
        torch.device("cpu"), 0,
    )  # fmt: skip
    group.begin_round(1)
    if real is None:
        group.synthesise(1, None, lambda: None)
        return group.buffer
    total = torch.zeros(len(real), everybody.spec.classes)
    for member in members:
        teacher = member.client.teacher
        if not config.dream.prior_correction:
            teacher = dataclasses.replace(teacher, adjustment=None)
        with torch.no_grad():
            logits = teacher(real)
        total += (logits / config.learning.kd_temperature).softmax(dim=1) / len(members)
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
    return {
        "clients": float(np.mean(clients)),
        **dict(zip(simulation.federation.model_names, clients, strict=True)),
        "student": accuracy(student.model, test),
    }


def main() -> None:
    """Train once, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".npz of 28x28 images")
    parser.add_argument("--partition", default="dirichlet:1")
    parser.add_argument("--quick", action="store_true", help="three rows, fewer steps")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--record", action="store_true", help="also write results/")
    options = parser.parse_args()
    whole = load_dataset(str(options.data), Path("data"))
    config = Config.from_options({**COMMON, "partition": options.partition})
    data = halves(whole)
    simulation = Simulation(config, dataset=data)
    everybody = simulation.federation
    start = len(whole.x_train) // 2 + HELD_OUT
    rest = whole.x_train[start : start + IMAGES]
    real = everybody.scale.scale(torch.from_numpy(rest))
    test = Examples(
        everybody.scale.scale(torch.from_numpy(data.x_test)),
        torch.from_numpy(data.y_test),
    )
    rows: list[dict[str, Any]] = []
    with one_core_each():
        progress("local training")
        simulation.warm_up()
        before = [accuracy(model, test) for model in everybody.client_models().values()]
        rows.append(
            {
                "images": "none, as trained",
                "clients": float(np.mean(before)),
                **dict(zip(everybody.model_names, before, strict=True)),
                "student": accuracy(everybody.student.model, test),
            }
        )
        for name in QUICK if options.quick else ROWS:
            progress(name)
            given = real if name.startswith("real") else None
            buffer = images_of(simulation, ROWS[name], given)
            epochs = 2 if options.quick else 15
            rows.append({"images": name, **learned(simulation, buffer, epochs, test)})
    report(
        f"one round, {options.partition}, accuracy on held-out training examples",
        rows,
        [],
        as_json=options.json,
        notes=environment("torch"),
        save=RESULTS / "dream_choices" if options.record else None,
    )


if __name__ == "__main__":
    main()
