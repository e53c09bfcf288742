"""Bytes that every method sends in a round of given shape, without training.

Every message is really encoded: models as `baselines.exchange` sends them, dreams as
`simulation.Simulation` does. The contents are zeros or those of an untrained model, because the
sizes do not depend on them.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from codream_secure.aggregation.aggregator import Meters
from codream_secure.aggregation.byte_ledger import ByteLedger
from codream_secure.aggregation.plain import ClearInput
from codream_secure.aggregation.requests import VERSION, ModelRequest, ModelState, encode
from codream_secure.aggregation.sections import sections
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.baselines.clear import ModelUpdate
from codream_secure.config.methods import Method, parse_method
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.federation.simulation import Simulation
from codream_secure.models.build import build_model
from codream_secure.report.pictures import png
from codream_secure.runs.sizes_format import ModelSizes, RoundSizes, Shape
from codream_secure.storage.files import replace
from protocols.messages import MaskedInput
from protocols.messages import encode as encode_message
from protocols.primitives.field import PrimeField

IMAGENET_VGG = "vgg11 (ImageNet)"
MODELS = ("resnet34", "resnet18", "vgg11", IMAGENET_VGG, "wrn16-1", "wrn40-1")
FEDAVG = ("fedavg", "fedavg-8bit", "fedavg-secure", "fedavg-secure-8bit")
# MB a round and client, both ways, of the paper's Table 3 (AAAI-25).
PAPER_FEDAVG = {
    "resnet34": 166.6,
    "resnet18": 89.5,
    "vgg11": 1013.6,
    "wrn16-1": 1.4,
    "wrn40-1": 4.5,
}
PAPER_CODREAM, PAPER_FAST = 600.0, 23.5
# What the official code sends in fast mode besides its server's model (256 dreams, 5 batches,
# R = 1), counted from its messages: 127.4 MB of generators, latents, dreams and logits.
_OFFICIAL_FAST = 127.4
_FULL_BYTES = 4


def tensor_sizes(model: str, spec: InputSpec) -> list[int]:
    """Return the number of values in every tensor of a model that FedAvg sends."""
    if model == IMAGENET_VGG:
        import torchvision  # noqa: PLC0415 - takes seconds

        with torch.device("meta"):
            made: torch.nn.Module = torchvision.models.vgg11()
    else:
        made = build_model(model, spec, seed=0)
    state = made.state_dict().items()
    return [value.numel() for name, value in state if not name.endswith("num_batches_tracked")]


def fedavg_bytes(numbers: list[int], method: Method, clients: int) -> dict[str, int]:
    """Return the bytes of one client in one round of FedAvg: request, update, new model, keys."""
    quantized = method.up != 8 * _FULL_BYTES
    request = ModelRequest(
        version=VERSION,
        round=1,
        model=bytes(32),
        sizes=tuple(numbers) if quantized else (),
        scales=(0.1,) * len(numbers) if quantized else (),
        bits=method.up if quantized else 1,
    )
    width = method.down // 8
    state = ModelState(
        VERSION,
        1,
        method.down,
        tuple(bytes(width * count) for count in numbers),
        () if width == _FULL_BYTES else ((0.1, 0.1),) * len(numbers),
    )
    down, keys = len(encode(request)) + len(encode(state)), {"up": 0, "down": 0}
    if not quantized:
        packed = tuple(bytes(_FULL_BYTES * count) for count in numbers)
        up = len(msgspec.msgpack.encode(ModelUpdate(VERSION, 1, packed, 1)))
    elif method.secure:
        (section,) = sections(request)
        bits = PrimeField.for_sum(clients, section.maximum).bits
        up = len(encode_message(MaskedInput(0, (bytes(-(-section.length * bits // 8)),))))
        keys = key_bytes(clients)
    else:
        packed = (bytes(-(-sum(numbers) * method.up // 8)),)
        up = len(msgspec.msgpack.encode(ClearInput(VERSION, 0, packed)))
    return {"up": up + keys["up"], "down": down + keys["down"]}


def key_bytes(clients: int) -> dict[str, int]:
    """Return the bytes of one client in a key exchange and an unmasking, without masked inputs."""
    roster = tuple(range(clients))
    request = ModelRequest(VERSION, 1, bytes(32), (1,), (1.0,), 1)
    ledger = ByteLedger(roster)
    answers = dict.fromkeys(roster, _zero)
    settings = AggregationSettings(roster=roster)
    SecureAggregator(answers, settings, Meters(ledger), session=bytes(32)).sum(request)
    phases = ledger.by_phase()
    of_input = ("broadcast", "masked_input")
    return {
        "up": sum(by["up"] for name, by in phases.items() if name not in of_input),
        "down": sum(by["down"] for name, by in phases.items() if name != "broadcast"),
    }


def _zero(_broadcast: bytes, _step: int) -> dict[str, NDArray[np.uint32]]:
    return {"update": np.zeros(1, np.uint32)}


def dream_bytes(shape: Shape, *, fast: bool, steps: int) -> dict[str, int]:
    """Run one masked round of dreaming and return the bytes of one client.

    Args:
        shape: of the messages.
        fast: whether the server has a generator and asks for labels with the last step.
        steps: R, of a batch.
    """
    options: dict[str, object] = {
        "clients": shape.clients,
        "models": "linear",
        "method": "codream-fast" if fast else "codream",
        "label_last_step": fast,
        "dreams": shape.dreams,
        "dream_batches": shape.batches,
        "dream_steps": steps,
        "bits": shape.bits,
        "label_bits": shape.label_bits,
        "generator_width": 1,
        "latent": 1,
        "rounds": 1,
        "warmup_epochs": 0,
        "kd_epochs": 0,
        "validation": 0.0,
        "secure": shape.clients > 2,  # noqa: PLR2004 - two cannot be masked
    }
    if not fast:
        del options["generator_width"], options["latent"]
    data = _noise(shape.image, 8 * shape.clients)
    run = Simulation(Config.from_options(options), dataset=data, compare_independent=False)
    for _ in run.rounds():
        pass
    return {"up": run.ledger.per_client("up"), "down": run.ledger.per_client("down")}


def _noise(spec: InputSpec, count: int) -> Dataset:
    draw = np.random.default_rng(0)
    images = draw.random((count, spec.channels, spec.height, spec.width), dtype=np.float32)
    labels = np.arange(count, dtype=np.int64) % spec.classes
    scaling = Scaling((0.0,) * spec.channels, (1.0,) * spec.channels)
    return Dataset("noise", images, labels, images, labels, spec, scaling, ("0",) * spec.classes)


def plain_bytes(shape: Shape) -> dict[str, int]:
    """Return the bytes of one client in a round of plain CoDream.

    Rounds of one and of two steps are run. Every further step costs as much as the second.
    """
    one, two = (dream_bytes(shape, fast=False, steps=steps) for steps in (1, 2))
    return {d: one[d] + (shape.dream_steps - 1) * (two[d] - one[d]) for d in ("up", "down")}


def round_sizes(shape: Shape) -> RoundSizes:
    """Return what `compare --sizes --json` prints."""
    plain, fast = (
        plain_bytes(shape),
        dream_bytes(shape, fast=True, steps=shape.fast_steps),
    )
    rows = []
    for model in MODELS:
        numbers = tensor_sizes(model, shape.image)
        official = 2 * _FULL_BYTES * sum(numbers)
        averaged = {
            name: fedavg_bytes(numbers, parse_method(name), shape.clients) for name in FEDAVG
        }
        told = {
            "paper: fedavg": PAPER_FEDAVG.get(model),
            "paper: codream": PAPER_CODREAM,
            "paper: codream-fast": PAPER_FAST,
            "official: fedavg": official / 1e6,
            "official: codream-fast": _OFFICIAL_FAST + official / 2e6,
        }
        ours = averaged | {"codream": plain, "codream-fast": fast}
        rows.append(ModelSizes(model=model, numbers=sum(numbers), bytes=ours, megabytes=told))
    found = {name: crossover(shape, parse_method(name)) for name in FEDAVG}
    return RoundSizes(shape=shape, field_bits=field_bits(shape), rows=rows, crossover=found)


def field_bits(shape: Shape) -> int:
    """Return b, the bits that one summed coordinate takes."""
    return PrimeField.for_sum(shape.clients, (1 << shape.bits) - 1).bits


def dream_formula(shape: Shape, steps: int, *, fast: bool) -> float:
    """Return the bytes of a round, both ways, by the formula of docs/communication.md.

    A batch has B dreams of d numbers. A broadcast takes one byte a number, and an answer b bits a
    number, where b bits hold the sum of n codes of q bits. Labels and keys are left out.
    """
    image = shape.image
    numbers = shape.batches * shape.dreams * image.channels * image.height * image.width
    bits = field_bits(shape)
    broadcasts = steps if fast else steps + 1
    return numbers * (broadcasts + steps * bits / 8)


def fedavg_formula(numbers: float, method: Method, clients: int) -> float:
    """Return the bytes of FedAvg by the formula: every number goes up once and down once."""
    up = PrimeField.for_sum(clients, (1 << method.up) - 1).bits if method.secure else method.up
    return numbers * (up + method.down) / 8


def crossover(shape: Shape, method: Method) -> dict[str, float]:
    """Return the model sizes, in numbers, above which dreaming sends less than FedAvg."""
    each = fedavg_formula(1.0, method, shape.clients)
    return {
        "codream": dream_formula(shape, shape.dream_steps, fast=False) / each,
        "codream-fast": dream_formula(shape, shape.fast_steps, fast=True) / each,
    }


def draw_crossover(shape: Shape, path: Path) -> None:
    """Draw the model size above which dreaming sends less, over the steps of a batch.

    Args:
        shape: of the messages.
        path: of the PNG file.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    steps = np.unique(np.geomspace(1, 2000, 60).astype(int))
    for name in FEDAVG:
        line = [m / 1e6 for m in _line(shape, steps, parse_method(name))]
        axis.loglog(steps, line, label=f"as much as {name}")
    for model in MODELS:
        count = sum(tensor_sizes(model, shape.image)) / 1e6
        axis.axhline(count, color="0.7", linewidth=0.8)
        axis.text(2000, count, model, fontsize=7, ha="right", va="bottom", color="0.4")
    axis.set_xlabel("steps R of every batch of dreams (labels with the last)")
    axis.set_ylabel("million numbers of the model")
    axis.set_title(
        f"above a line CoDream sends less than FedAvg: {shape.clients} clients, "
        f"{shape.batches} x {shape.dreams} dreams,\n{shape.bits} bits a coordinate",
        fontsize=9,
    )
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    replace(path, png(figure))


def _line(shape: Shape, steps: NDArray[np.float64], method: Method) -> Iterator[float]:
    each = fedavg_formula(1.0, method, shape.clients)
    for count in steps:
        yield dream_formula(shape, int(count), fast=True) / each
