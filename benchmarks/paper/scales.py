"""How much of everything the paper's tables take: its own setting, and two smaller ones.

The paper's settings are those of its text and, where the text names none, of the official code's
configuration files.
"""

from collections.abc import Mapping
from typing import Literal

Scale = Literal["tiny", "small", "full"]
Options = Mapping[str, object]

# R_adv is part of what the paper calls CoDream, though not a default of `simulate`. Clients have
# few examples, as in the paper (50 of MNIST): with more of the digits nobody needs the others.
SETTINGS: dict[Scale, dict[str, object]] = {
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
    "samples_per_client": 30,
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
