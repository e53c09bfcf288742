"""The models of a run, and their learners without DP, built from its settings."""

import warnings
from collections.abc import Mapping

import torch
from torch import nn

from codream_secure.config.resolved import Resolved
from codream_secure.data.spec import InputSpec
from codream_secure.errors import UserError
from codream_secure.learning.batches import BatchStream
from codream_secure.learning.learner import PlainLearner
from codream_secure.models.build import build_model, parameter_count
from codream_secure.models.custom import is_custom
from codream_secure.models.layers import Norm, takes_channels_last
from codream_secure.models.trial import trains_on_one, try_model
from codream_secure.runtime.seeds import derive_seed


def plain_learner(config: Resolved, model: nn.Module, data: BatchStream | None) -> PlainLearner:
    """Return a learner without DP: its model, and its minibatches (None: it has no data)."""
    return PlainLearner(model, data, config.learning, bf16=config.run.precision == "bf16")


def build_student(config: Resolved, spec: InputSpec, device: torch.device) -> PlainLearner:
    """Build the server's student: the first architecture of the run, without local data.

    With codream-messenger it is the common model.

    Args:
        config: resolved settings.
        spec: shape of an image and number of classes.
        device: where the model lives.
    """
    name = config.model.models.split(",")[0].strip()
    if config.has_common_model:
        name = config.common_architecture
    model = run_model(config, spec, name, "server", device=device)
    check_single_dreams(config, spec, {name: model})
    return plain_learner(config, model, None)


def check_single_dreams(config: Resolved, spec: InputSpec, models: Mapping[str, nn.Module]) -> None:
    """Refuse models that cannot learn from a single dream, if the settings lead to one.

    Args:
        config: resolved settings.
        spec: shape of an image and number of classes.
        models: one of each architecture that learns from dreams, by name.

    Raises:
        UserError: names the layer, usually a BatchNorm that would see one value a channel.
    """
    dream, learning = config.dream, config.learning
    alone = dream.dreams == 1 and (dream.dream_batches == 1 or config.secure.dropout > 0)
    if not learning.kd_epochs or not (alone or learning.kd_batch == 1):
        return
    for name, model in models.items():
        if reason := trains_on_one(model, spec):
            wanted = "--kd-batch" if learning.kd_batch == 1 else "--dreams"
            raise UserError(
                f"model {name} cannot learn from one dream at a time: {reason}; use {wanted} 2 or "
                "more, or a model without such a layer"
            )


def warn_of_size(name: str, common: nn.Module, own: Mapping[int, nn.Module]) -> None:
    """Warn of a common model that is larger than every client's own: it should be the small one.

    Args:
        name: of the common model's architecture.
        common: the model that is averaged.
        own: the clients' own models, by client.
    """
    size, largest = parameter_count(common), max(map(parameter_count, own.values()))
    if size > largest:
        warnings.warn(
            f"--messenger {name} is larger than every client's own model: "
            f"{4 * size:,} bytes each way as float32, the largest of theirs {4 * largest:,}",
            stacklevel=2,
        )


def run_model(
    config: Resolved,
    spec: InputSpec,
    name: str,
    *owner: str | int,
    device: torch.device,
    seeded: bool = True,
) -> nn.Module:
    """Build a model with the settings of a run.

    Args:
        config: resolved settings.
        spec: shape of an image and number of classes.
        name: of the architecture.
        owner: determines the first weights, together with the run's seed.
        device: where the model lives.
        seeded: False: the first weights come from the operating system's randomness.
    """
    seed = derive_seed(config.run.seed or 0, "model", *owner) if seeded else None
    model = build_model(name, spec, width=config.model.width, norm=norm_of(config), seed=seed)
    if is_custom(name) and config.run.precision == "bf16":
        try:
            try_model(model, spec, bf16=True)
        except UserError as error:
            raise UserError(f"model {name} with --precision bf16: {error}") from error
    if config.run.channels_last and takes_channels_last(model):
        # Convolutions pass the layout of their weights on, whatever the layout of their input.
        model = model.to(memory_format=torch.channels_last)
    return model.to(device)


def norm_of(config: Resolved) -> Norm:
    """Return the normalization layer of a run's models."""
    # "auto" is resolved only if a model of the run has normalization layers; a site's own
    # architecture may have some although no model of the settings does.
    grouped = config.model.norm == "group" or (
        config.model.norm == "auto" and config.private_training
    )
    return "group" if grouped else "batch"
