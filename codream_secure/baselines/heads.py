"""Models of any architecture with one form of classifier, for methods that share it or its input.

Where architectures differ in the width of the classifier's input, a linear layer of the client's
own maps it to the common width. It adds no capacity: the classifier behind it is linear too.
HtFLlib pools features to the common width instead.
"""

import copy

import torch
from torch import nn

from codream_secure.baselines.base import Parties, last_layer, replace_last_layer
from codream_secure.errors import UserError
from codream_secure.models.build import parameter_count
from codream_secure.runtime.seeds import derive_seed


def models_with_equal_heads(parties: Parties) -> dict[int, nn.Module]:
    """Return a model for each client, all with a classifier of the same form and first numbers.

    Raises:
        UserError: a model has no linear classifier, or no layer before it: what it would send of
            its features would be pictures.
    """
    models = parties.own_models()
    for client, model in models.items():
        _check_features(model, parties.federation.model_names[client])
    widths = {last_layer(model).in_features for model in models.values()}
    width = widths.pop() if len(widths) == 1 else parties.settings.feature_width
    head = seeded_linear(parties, width, parties.federation.spec.classes, "head")
    for client, model in models.items():
        narrow(parties, model, width, copy.deepcopy(head), client)
    return models


def narrow(
    parties: Parties, model: nn.Module, width: int, head: nn.Linear, owner: str | int
) -> None:
    """Give a model another classifier, and a linear layer before it if the width differs.

    Args:
        parties: whose seed determines the layer's first numbers.
        model: changed in place.
        width: of the classifier's input.
        head: the new classifier.
        owner: determines the layer's first numbers, too.
    """
    own = last_layer(model).in_features
    if own != width:
        mapping = seeded_linear(parties, own, width, "mapping", owner)
        replace_last_layer(model, nn.Sequential(mapping, head))
    else:
        replace_last_layer(model, head)


def seeded_linear(parties: Parties, inputs: int, outputs: int, *owner: str | int) -> nn.Linear:
    """Return a linear layer whose first numbers follow from the run's seed and the owner."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(parties.exchange.seed, "layer", *owner))
        return nn.Linear(inputs, outputs).to(parties.federation.device)


def _check_features(model: nn.Module, name: str) -> None:
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError(f"model {name} ends in no linear layer: this method needs one")
    if parameter_count(model) == parameter_count(linear[-1]):
        raise UserError(f"model {name} has no features but the pixels: this method needs some")
