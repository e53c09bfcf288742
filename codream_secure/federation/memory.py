"""What a run takes of this machine's memory, refused before it is taken if there is not enough.

The estimate counts what is surely there at once, so that nothing is refused that works: models with
their gradients and optimizers, what training keeps of a batch, pictures, vectors under masks, and
keys. It is below the peak, by half at most.
"""

import os
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch

from codream_secure.config.resolved import Resolved
from codream_secure.data.spec import InputSpec
from codream_secure.federation.run_models import norm_of
from codream_secure.models.footprint import Footprint, footprint_of
from codream_secure.runtime import memory

_FLOAT = 4
# Weights, gradients and the two averages of Adam; client and twin each have all of them.
_LEARNER, _LEARNERS = 4, 2
# A coordinate of a masked vector: as code and as message for each client, and what one client's
# rounding and masking takes, for as many as are at work.
_KEPT, _AT_WORK = 6, 32
_DP_BATCH = 512  # the most that `dp_batch` is by default
_KEY = 400  # of one client about another, for one step, measured: shares, seeds, commitments


class Part(NamedTuple):
    """Some of the memory: how many bytes, and which options make it less."""

    size: int
    ways: str


def check_memory(
    config: Resolved, spec: InputSpec, examples: int, device: torch.device, *, averages: bool
) -> None:
    """Refuse a run that this machine's memory cannot hold.

    Args:
        config: settings of the run.
        spec: shape of an image, and the number of classes.
        examples: training and test images that the run copies.
        device: where tensors live; only what is beside an accelerator is counted.
        averages: whether models are summed instead of the gradients of dreams.

    Raises:
        UserError: how much the run would take, how much there is, and which options lower it.
    """
    parts = needed(config, spec, examples, averages=averages)
    if device.type != "cpu":
        parts = {name: parts[name] for name in ("vectors", "keys")}
    total = sum(part.size for part in parts.values())
    name, most = max(parts.items(), key=lambda item: item[1].size)
    what = f"this run, {memory.size(most.size)} of it for {name},"
    memory.require(total, what, f"lower {most.ways}")


def needed(
    config: Resolved, spec: InputSpec, examples: int, *, averages: bool
) -> Mapping[str, Part]:
    """Return what a run takes, by kind; the arguments are those of `check_memory`."""
    clients, dream = config.data.clients, config.dream
    names = [name.strip() for name in config.model.models.split(",")]
    footprints = {
        name: footprint_of(name, spec, width=config.model.width, norm=norm_of(config))
        for name in names
    }
    dealt = Counter(names[c % len(names)] for c in range(clients))
    at_work = min(os.cpu_count() or 1, clients)
    pixels = spec.channels * spec.height * spec.width
    together = dream.dreams * (dream.dream_batches if dream.parallel_batches else 1)
    length = footprints[names[0]].state // _FLOAT if averages else together * pixels
    of_models = sum(footprints[name].state * count for name, count in dealt.items())
    steps = config.secure.key_steps or (1 if averages else dream.sums_per_synthesis)
    return {
        "models": Part(
            _LEARNER * _LEARNERS * of_models, "--clients or --width, or take smaller --models"
        ),
        "training": Part(
            at_work
            * _in_training(config, list(footprints.values()), together, examples // clients),
            "--batch (--dp-batch), --kd-batch or --dreams",
        ),
        "pictures": Part(examples * pixels * _FLOAT, "--samples-per-client"),
        "vectors": Part(
            length * (_KEPT * clients + _AT_WORK * at_work),
            "--width or --clients" if averages else "--dreams, --dream-batches or --clients",
        ),
        "keys": Part(
            _KEY * steps * clients**2 if config.secure.secure else 0, "--clients or --key-steps"
        ),
    }


def _in_training(config: Resolved, footprints: list[Footprint], dreams: int, share: int) -> int:
    """Return the bytes that one client's largest step keeps until its gradient is known."""
    learning, image = config.learning, max(one.image for one in footprints)
    if config.private_training:
        batch = config.privacy.dp_batch or min(share, _DP_BATCH)
        return batch * (image + max(one.state for one in footprints))
    distilled = min(learning.kd_batch, dreams) if learning.kd_epochs else 0
    return image * (min(learning.batch, share) + distilled)
