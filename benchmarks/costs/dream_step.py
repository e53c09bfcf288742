"""What a client's dream step and distillation step cost above the passes through its model.

    python -m benchmarks.costs.dream_step                 about 3 minutes on 2 cores
    ... --quick         digits' images alone
    ... --device cuda   on a GPU, with its peak memory
    ... --record        also write results/dream_step.txt and .json

All figures are ratios of medians of interleaved measurements on one thread, as `simulate` runs a
client. The bare cost of a dream step is one forward and one backward pass of the frozen model to
its input; of a joint step two forward passes and one backward pass to the parameters, and Adam.
R_bn reads every feature map twice more, forward and backward: it is shown, and no target.
"""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.shared.gates import Gate, Report, environment
from benchmarks.shared.grid import Grid
from benchmarks.shared.script import finish, parser
from codream_secure.aggregation.requests import VERSION, DreamRequest
from codream_secure.config.concerns import LearningConfig
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dreaming.feature_statistics import StatisticsMemory, channel_moments
from codream_secure.dreaming.teacher import Teacher, dream_contribution
from codream_secure.learning.batches import BatchStream
from codream_secure.learning.learner import PlainLearner
from codream_secure.models.build import build_model
from protocols.quantization import Quantizer

DREAMS, LOCAL, CLIENTS = 128, 32, 4
SHAPES = {"8x8x1": InputSpec(1, 8, 8, 10), "32x32x3": InputSpec(3, 32, 32, 10)}

Work = Callable[[], object]


class Steps:
    """The steps of a model, with dreams and local data of one shape."""

    def __init__(self, model: str, spec: InputSpec, device: torch.device) -> None:
        self.spec, self.device, self.name = spec, device, model
        self.scale = PixelScale(Scaling((0.5,) * spec.channels, (0.5,) * spec.channels), device)
        shape = (DREAMS, spec.channels, spec.height, spec.width)
        pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
        self.request = DreamRequest(
            version=VERSION,
            round=1,
            batch=0,
            dream_step=0,
            shape=shape,
            dreams=pixels.to(torch.uint8).numpy().tobytes(),
            bits=4,
            clip=1.0,
            entropy_weight=1.0,
            bn_weight=10.0,
            balance_weight=1.0,
        )
        self.dreams = self.scale.from_pixels(pixels.to(torch.uint8).numpy())
        self.targets = torch.full((DREAMS, spec.classes), 1 / spec.classes, device=device)

    def model(self, *, channels_last: bool = True) -> nn.Module:
        """Return a fresh model."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return build_model(self.name, self.spec, seed=0).to(memory_format=layout).to(self.device)

    def frozen(self, **layout: bool) -> nn.Module:
        """Return a model as teachers are."""
        return self.model(**layout).eval().requires_grad_(requires_grad=False)

    def dream_step(
        self, *, bf16: bool = False, channels_last: bool = True, bn_weight: float = 10.0
    ) -> Work:
        """Return what a client does in a dream step, quantization included."""
        request = msgspec.structs.replace(self.request, bn_weight=bn_weight)
        model = self.frozen(channels_last=channels_last)
        teacher = Teacher(model, StatisticsMemory(), bf16=bf16)
        quantizer = Quantizer(15, 1.0)

        def work() -> object:
            values = dream_contribution(teacher, self.scale, request)["gradient"]
            return quantizer.encode(values, seed=bytes(32), step=1, section="gradient")

        return work

    def bare_dream_step(self) -> Work:
        """Return one forward and one backward pass to the input."""
        model = self.frozen()

        def work() -> object:
            leaf = self.dreams.detach().requires_grad_()
            return torch.autograd.grad(model(leaf).sum(), leaf)

        return work

    def joint_step(self, *, bf16: bool = False, channels_last: bool = True) -> Work:
        """Return a joint step of a learner."""
        spec = self.spec
        images = torch.randn(256, spec.channels, spec.height, spec.width).to(self.device)
        labels = torch.randint(spec.classes, (256,)).to(self.device)
        stream = BatchStream(images, labels, LOCAL, torch.Generator())
        learner = PlainLearner(
            self.model(channels_last=channels_last),
            stream,
            LearningConfig(learning_rate=1e-3),
            bf16=bf16,
        )
        return lambda: learner.joint_step(self.dreams, self.targets, 4.0)

    def bare_joint_step(self) -> Work:
        """Return the passes of a joint step and Adam's step."""
        model = self.model().train()
        optimizer = torch.optim.Adam(model.parameters(), foreach=True)
        labels = torch.zeros(DREAMS, dtype=torch.int64, device=self.device)

        def work() -> object:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(self.dreams), labels)
            loss = loss + F.cross_entropy(model(self.dreams[:LOCAL]), labels[:LOCAL])
            loss.backward()  # type: ignore[no-untyped-call]
            return optimizer.step()

        return work

    def moments(self, *, plain: bool) -> Work:
        """Return mean and variance of 16 feature maps and their gradient, ours or torch's own."""
        features = torch.randn(DREAMS, 16, self.spec.height, self.spec.width, device=self.device)
        features = features.to(memory_format=torch.channels_last)

        def work() -> object:
            leaf = features.detach().requires_grad_()
            if plain:
                axes = (0, 2, 3)
                found = leaf.mean(dim=axes), leaf.var(dim=axes, unbiased=False)
            else:
                found = channel_moments(leaf)
            return torch.autograd.grad(found[0].norm() + found[1].norm(), leaf)

        return work

    def one_after_another(self) -> Work:
        """Return gradients of several clients of one architecture, in turn."""
        models = [self.frozen() for _ in range(CLIENTS)]

        def work() -> object:
            gradients: list[Tensor] = []
            for model in models:
                leaf = self.dreams.detach().requires_grad_()
                gradients += torch.autograd.grad(_entropy_like(model(leaf)), leaf)
            return gradients

        return work

    def all_at_once(self) -> Work:
        """Return the same with `torch.func`: parameters stacked, one batched evaluation."""
        models = [self.frozen() for _ in range(CLIENTS)]
        stacked = torch.func.stack_module_state(models)
        skeleton = copy.deepcopy(models[0]).to("meta")

        def loss(parameters: Any, buffers: Any, dreams: Tensor) -> Tensor:  # noqa: ANN401
            logits = torch.func.functional_call(skeleton, (parameters, buffers), (dreams,))
            return _entropy_like(logits)

        gradients = torch.func.vmap(torch.func.grad(loss, argnums=2), in_dims=(0, 0, None))
        return lambda: gradients(*stacked, self.dreams)


def _entropy_like(logits: Tensor) -> Tensor:
    return torch.logsumexp(logits, dim=1).sum()


def medians(works: dict[str, Work], repeats: int, device: torch.device) -> dict[str, float]:
    """Return median seconds by name, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(steps: Steps, repeats: int) -> dict[str, float]:
    """Return the ratios of one model and shape."""
    works = {
        "dream": steps.dream_step(),
        "no R_bn": steps.dream_step(bn_weight=0.0),
        "bare dream": steps.bare_dream_step(),
        "moments": steps.moments(plain=False),
        "plain moments": steps.moments(plain=True),
        "dream, NCHW": steps.dream_step(channels_last=False),
        "dream, bf16": steps.dream_step(bf16=True),
        "joint": steps.joint_step(),
        "bare joint": steps.bare_joint_step(),
        "joint, NCHW": steps.joint_step(channels_last=False),
        "joint, bf16": steps.joint_step(bf16=True),
        "in turn": steps.one_after_another(),
        "vmap": steps.all_at_once(),
    }
    t = medians(works, repeats, steps.device)
    return {
        "dream step ms": 1e3 * t["dream"],
        "dream / bare": t["dream"] / t["bare dream"],
        "no R_bn / bare": t["no R_bn"] / t["bare dream"],
        "moments / mean, var": t["moments"] / t["plain moments"],
        "joint step ms": 1e3 * t["joint"],
        "joint / bare": t["joint"] / t["bare joint"],
        "dream NCHW / channels_last": t["dream, NCHW"] / t["dream"],
        "joint NCHW / channels_last": t["joint, NCHW"] / t["joint"],
        "dream bf16 / float32": t["dream, bf16"] / t["dream"],
        "joint bf16 / float32": t["joint, bf16"] / t["joint"],
        "vmap / in turn": t["vmap"] / t["in turn"],
    }


BOUNDS = {
    "dream step without R_bn over bare passes": ("no R_bn / bare", 1.2),
    "moments of features over torch's mean and var": ("moments / mean, var", 0.5),
    "joint step over bare passes": ("joint / bare", 1.15),
}


def main() -> None:
    """Measure and compare."""
    arguments = parser(__doc__, "small images alone")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = arguments.parse_args()
    device, grid, repeats = (
        torch.device(options.device),
        Grid(options.keep),
        5 if options.quick else 11,
    )
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    gates = []
    for shape in list(SHAPES)[: 1 if options.quick else None]:
        for model in ("resnet8", "wrn16-1"):
            settings = {"device": options.device, "repeats": repeats}
            step = Steps(model, SHAPES[shape], device)
            name, kind = f"{model}, {shape}", dict[str, float]
            ratios = grid.result(name, settings, partial(measure, step, repeats), kind)
            rows.append({"model": model, "images": shape, **ratios})
            gates += [
                Gate.at_most(f"{name}: {what}", ratios[ratio], bound)
                for what, (ratio, bound) in BOUNDS.items()
            ]
    gpu = "not measured: no GPU at hand"
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
        gpu = f"{torch.cuda.get_device_name()}, peak {peak:.0f} MiB"
    notes = {"GPU": gpu, **environment("torch")}
    title = f"dream and distillation steps of {DREAMS} dreams"
    finish(Report(title, rows, gates, notes), options, "dream_step")


if __name__ == "__main__":
    main()
