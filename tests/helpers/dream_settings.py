"""Settings of a synthesis over three classes."""

from codream_secure.aggregation.requests import LocalSteps
from codream_secure.dreaming.server_terms import SynthesisSettings


def settings(**changes):
    values = {
        "classes": 3,
        "bits": 8,
        "entropy_weight": 1.0,
        "bn_weight": 0.0,
        "balance_weight": 1.0,
        "statistics_momentum": 0.0,
        "local": LocalSteps(),
        "adversary": "jsd",
        "adversary_weight": 1.0,
        "adversary_bits": 12,
        "label_weighting": "equal",
        "weight_cap": 0,
        "tv_weight": 0.0,
        "l2_weight": 0.0,
        "statistics_weight": 0.0,
        "labels": "probabilities",
        "label_bits": 12,
        "label_clip": 20.0,
        "kd_temperature": 4.0,
    }
    return SynthesisSettings(**(values | changes))
