"""The summed labels that a server sends to learn from, and what a site checks in them."""

import torch

from codream_secure.aggregation.aggregator import FieldSum
from codream_secure.aggregation.requests import LabelRequest, SoftLabels
from codream_secure.aggregation.sections import sections
from codream_secure.dreaming.labels import label_mean, soft_targets
from protocols.primitives.field import PrimeField
from protocols.primitives.packing import unpack


def targets(request: LabelRequest, found: SoftLabels, clients: int) -> torch.Tensor:
    """Decode summed labels to soft targets, one row for each dream."""
    public = sections(request)
    totals = {}
    for section, packed in zip(public, found.totals, strict=True):
        field = PrimeField.for_sum(clients, section.maximum)
        totals[section.name] = unpack(packed, field.bits, section.length)
    mean = label_mean(FieldSum(totals, found.count, public), request)
    return soft_targets(mean, request)
