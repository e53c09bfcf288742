"""Membership inference: can an attacker tell which pictures were trained on?

Source: LiRA (Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022).
The same federation runs several times, each time without a random half of every client's
examples. How sure a model is of an example follows one Gaussian if the example took part, and
another one if it did not. The attacker compares their likelihoods for one run; the other runs are
its shadows.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_curve
from torch import Tensor, nn
from torch.nn import functional as F

from codream_secure.config.rules import label_temperature
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset
from codream_secure.dreaming.buffer import DreamBuffer
from codream_secure.federation.simulation import Simulation
from codream_secure.learning.acquisition import AcquisitionSettings, distil
from codream_secure.learning.learner import PlainLearner
from codream_secure.runtime.seeds import derive_seed, generator
from codream_secure.storage.files import make_folder, npz, replace

# Which model is attacked: what the attacker needs for it.
VICTIMS = {
    "client model": "the model itself, which never leaves its client",
    "surrogate of a client": "one client's labels of the dreams, as if there were no masks",
    "surrogate of the sum": "the summed labels, as the server has them",
    "server student": "the server's model",
}
_BOOTSTRAPS = 200
_AT, _HALF = 0.01, 0.5
_EPOCHS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How well an attack tells members from others.

    Attributes:
        victim: of `VICTIMS`.
        auc: area under the ROC curve: 0.5 is guessing.
        interval: 95 % confidence interval of ``auc``, from resampled runs and examples.
        tpr: share of members that are found at one percent of false alarms.
        guesses: examples times runs.
    """

    victim: str
    auc: float
    interval: tuple[float, float]
    tpr: float
    guesses: int


def audit_membership(
    config: Config,
    dataset: Dataset,
    shadows: int,
    folder: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[Membership]:
    """Attack every victim and return how well members are told from others.

    Args:
        config: of the federation.
        dataset: the one that the configuration names.
        shadows: number of runs; each is attacked with the others as shadows.
        folder: where runs are stored, so that they are not made again; None: they are not stored.
        advance: called after every run.
    """
    runs, of_these = [], _digest(config, dataset)
    for index in range(shadows):
        path = None if folder is None else folder / f"shadow-{index}-{of_these}.npz"
        runs.append(_kept(path, config, dataset, index))
        advance()
    members = np.stack([run["members"] for run in runs])
    return [_attacked(name, np.stack([run[name] for run in runs]), members) for name in VICTIMS]


def _digest(config: Config, dataset: Dataset) -> str:
    """Return what stored runs are known by: those of other settings or other data are not used."""
    told = hashlib.sha256(msgspec.json.encode(config.options(), order="deterministic"))
    for part in (dataset.x_train, dataset.y_train):
        told.update(np.ascontiguousarray(part).tobytes())
    return told.hexdigest()[:16]


def _kept(
    path: Path | None, config: Config, dataset: Dataset, index: int
) -> dict[str, NDArray[np.float64]]:
    if path is not None and path.is_file():
        with np.load(path) as stored:
            return dict(stored)
    found = _shadow(config, dataset, index)
    if path is not None:
        make_folder(path.parent)
        replace(path, npz(found))
    return found


def _shadow(config: Config, dataset: Dataset, index: int) -> dict[str, NDArray[np.float64]]:
    """Return which examples took part in one run, and how sure each victim is of each example.

    An example that belongs to no client gets NaN.
    """
    seed = config.run.seed or 0
    draw = np.random.default_rng(derive_seed(seed, "members", index))
    keep = draw.random(len(dataset.y_train)) < _HALF
    simulation = Simulation(config, dataset=dataset, compare_independent=False, keep=keep)
    list(simulation.rounds())
    everybody, size = simulation.federation, len(dataset.y_train)
    images = everybody.scale.scale(torch.from_numpy(dataset.x_train))
    labels = torch.from_numpy(dataset.y_train).to(images.device)
    temperature = label_temperature(simulation.config)
    of_the_sum = _surrogate(simulation, [dream.targets for dream in simulation.dreams], "sum")
    found = {name: np.full(size, np.nan) for name in VICTIMS} | {"members": keep.astype(float)}
    for client, rows in everybody.all_parts.items():
        member = everybody.members[client]
        teacher = member.client.teacher
        answers = [_labels_of(teacher, d, temperature) for d in _dreams(simulation)]
        models = {
            "client model": member.client.learner.model,
            "surrogate of a client": _surrogate(simulation, answers, client),
            "surrogate of the sum": of_the_sum,
            "server student": everybody.student.model,
        }
        for name, model in models.items():
            found[name][rows] = _sureness(model, images[rows], labels[rows])
    return found


def _dreams(simulation: Simulation) -> Iterator[Tensor]:
    for dream in simulation.dreams:
        yield simulation.federation.scale.from_pixels(dream.pixels)


@torch.no_grad()
def _labels_of(teacher: Callable[[Tensor], Tensor], dreams: Tensor, temperature: float) -> Tensor:
    return (teacher(dreams) / temperature).softmax(dim=1)


def _surrogate(simulation: Simulation, targets: list[Tensor], who: str | int) -> nn.Module:
    """Return a new model that learned only from the dreams and the given labels."""
    config, everybody = simulation.config, simulation.federation
    model = everybody.model(everybody.model_names[0], "surrogate", who)
    learner = PlainLearner(model, None, config.learning, bf16=False)
    buffer = DreamBuffer(len(targets) or 1)
    for dreams, labels in zip(_dreams(simulation), targets, strict=True):
        buffer.add(dreams, labels.to(dreams.device))
    settings = AcquisitionSettings(
        order="two-stage",
        kd_epochs=_EPOCHS,
        kd_batch=config.learning.kd_batch,
        kd_temperature=label_temperature(config),
        augmentation="none",
        local_steps=0,
    )
    distil(learner, buffer, settings, generator(config.run.seed or 0, "surrogate", who))
    return model


@torch.no_grad()
def _sureness(model: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) of the right class, which is nearly Gaussian over runs (LiRA)."""
    was_training = model.training
    log_p = F.log_softmax(model.eval()(images).double(), dim=1)
    model.train(was_training)
    right = log_p.gather(1, labels[:, None])[:, 0]
    others = log_p.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    return (right - others).cpu().numpy()


def _attacked(name: str, scores: NDArray[np.float64], members: NDArray[np.float64]) -> Membership:
    guesses, truths, sources = [], [], []
    everything = np.arange(len(scores))
    for target in everything:
        others = everything != target
        likelihood = _likelihood_ratio(scores[target], scores[others], members[others] == 1)
        usable = np.isfinite(likelihood)
        guesses.append(likelihood[usable])
        truths.append(members[target][usable] == 1)
        sources.append(np.full(int(usable.sum()), target))
    guess, truth = np.concatenate(guesses), np.concatenate(truths)
    draw = np.random.default_rng(0)
    resampled = []
    for _ in range(_BOOTSTRAPS):
        runs = draw.integers(len(scores), size=len(scores))
        rows = [draw.integers(len(guesses[r]), size=len(guesses[r])) for r in runs]
        pairs = [(guesses[r][i], truths[r][i]) for r, i in zip(runs, rows, strict=True)]
        resampled.append(_auc(*map(np.concatenate, zip(*pairs, strict=True))))
    low, high = (float(q) for q in np.quantile(resampled, [0.025, 0.975]))
    false_alarms, found, _ = roc_curve(truth, guess)
    return Membership(
        victim=name,
        auc=_auc(guess, truth),
        interval=(low, high),
        tpr=float(found[np.searchsorted(false_alarms, _AT, side="right") - 1]),
        guesses=len(guess),
    )


def _auc(guess: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415

    return float(roc_auc_score(truth, guess))


def _likelihood_ratio(
    scores: NDArray[np.float64], shadows: NDArray[np.float64], member: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return log N(score; in) - log N(score; out)."""
    # All examples share one spread, because there are too few shadows to estimate one for each.
    inside = np.where(member, shadows, np.nan)
    outside = np.where(member, np.nan, shadows)
    with np.errstate(invalid="ignore", divide="ignore"):
        counts = [np.isfinite(side).sum(axis=0) for side in (inside, outside)]
        means = [np.nansum(s, axis=0) / c for s, c in zip((inside, outside), counts, strict=True)]
    spreads = [
        max(1e-6, float(np.sqrt(np.nanmean((side - mean) ** 2))))
        for side, mean in zip((inside, outside), means, strict=True)
    ]
    logs = [
        -((scores - mean) ** 2) / (2 * spread**2) - np.log(spread)
        for mean, spread in zip(means, spreads, strict=True)
    ]
    return np.asarray(logs[0] - logs[1])
