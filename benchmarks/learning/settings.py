"""Settings that several scripts run; chosen on folds and held-out halves of training parts."""

from typing import Any

SKEWED = {"partition": "dirichlet:0.5"}
FAST = {**SKEWED, "method": "codream-fast"}
FOUR = "lenet5,resnet8,wrn16-1,mlp"
_SMALL_IMAGES: dict[str, Any] = {
    "clients": 4,
    "method": "codream-fast",
    "dreams": 128,
    "dream_steps": 10,
    "generator_lr": 0.02,
    "kd_epochs": 10,
    "buffer": 8,
    "precision": "bf16",
}
# Four architectures; `dataset` is the name of a file in the data folder.
UNEQUAL: dict[str, Any] = {
    **_SMALL_IMAGES,
    "dataset": "fashion-mnist-12k.npz",
    "samples_per_client": 250,
    "models": FOUR,
    "rounds": 20,
    "statistics_momentum": 0.9,
    "tv_weight": 1.0,
    "kd_temperature": 2.0,
    "partition": "dirichlet:1",
}
# Chosen on a held-out half of the training part (one seed): more steps a batch, all dreams kept.
UNEQUAL_IID = {
    **UNEQUAL,
    "rounds": 10,
    "dream_steps": 30,
    "kd_epochs": 6,
    "buffer": 40,
    "partition": "iid",
}
_OF_DREAMS = ("method", "statistics_momentum", "generator_lr", "tv_weight", "partition")
# Dreams stay where they begin: at pictures that `codream_results` puts there.
NOT_OF_DREAMS = {name: value for name, value in UNEQUAL.items() if name not in _OF_DREAMS} | {
    "dream_batches": 4,
    "dream_steps": 0,
}
CIFAR = {
    **_SMALL_IMAGES,
    "dataset": "cifar10-12k.npz",
    "samples_per_client": 1000,
    "models": "resnet8",
    "rounds": 8,
}
LONG = {
    "partition": "dirichlet:0.1",
    "method": "codream-fast",
    "rounds": 100,
    "adaptive": "jsd",
    "kd_epochs": 4,
}
