"""All audits of one configuration, one after the other."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codream_secure.audit.differences import audit_differences, dream_request_of
from codream_secure.audit.findings import Finding
from codream_secure.audit.inversion import Inversion, audit_inversion, resemblance
from codream_secure.audit.membership import VICTIMS, audit_membership
from codream_secure.audit.one_run import audit_one_run
from codream_secure.audit.sums import audit_sums
from codream_secure.audit.training import audit_steps
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.datasets import Dataset
from codream_secure.dreaming.teacher import Teacher, dream_contribution
from codream_secure.federation.simulation import Simulation
from codream_secure.runtime.parallel import one_core_each

PARTS = {
    "sums": "sums with integer noise, through real masks, for every number of survivors",
    "steps": "single steps of DP-SGD, white box",
    "one-run": "one private training with canaries, white box",
    "membership": "who was trained on (LiRA)",
    "inversion": "pictures from gradients (DLG)",
    "differences": "one client's gradient from sums whose cohorts differ by it (D1)",
}
ONE_RUN_BUDGETS = (1.0, 2.0, float("inf"))
_PRIVACY = (
    "dp_",
    "secure_noise",
    "statistics_eps",
    "statistics_weight",
    "noise_colluders",
    "accept_low_utility",
)


def run(
    config: Config,
    dataset: Dataset,
    *,
    parts: Sequence[str] = tuple(PARTS),
    shadows: int = 8,
    folder: Path | None = None,
    start: Callable[[str, int], None] = lambda _name, _total: None,
    advance: Callable[[], None] = lambda: None,
) -> list[Finding]:
    """Run the audits and return what they found.

    Args:
        config: of the federation that is attacked. With ``dp_eps`` set, the same federation
            without DP is attacked too.
        dataset: the one that the configuration names.
        parts: keys of `PARTS`.
        shadows: runs for membership inference, for each of the two federations.
        folder: where these runs are stored; None: they are not.
        start: called when a part begins, with its title and its number of steps.
        advance: called after every step.
    """
    found: list[Finding] = []
    with one_core_each():
        for part in parts:
            start(PARTS[part], _steps(part, config, shadows))
            subject = _Subject(config, dataset, shadows, folder, advance)
            found += _rows(part, subject)
    return found


def _steps(part: str, config: Config, shadows: int) -> int:
    if part == "membership":
        return shadows * (2 if config.private else 1)
    return {"sums": 2, "steps": 1, "one-run": len(ONE_RUN_BUDGETS)}.get(part, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Subject:
    """What is attacked, and with how much effort."""

    config: Config
    dataset: Dataset
    shadows: int
    folder: Path | None
    advance: Callable[[], None]


def _rows(part: str, subject: _Subject) -> Iterator[Finding]:
    if part == "sums":
        yield from _sums(subject.advance)
    elif part == "steps":
        yield from _steps_found(subject.advance)
    elif part == "one-run":
        yield from _one_run(subject.dataset, subject.advance)
    elif part == "membership":
        yield from _membership(subject)
    elif part == "differences":
        yield from _differences(subject)
    else:
        yield from _inversion(subject)


def _sums(advance: Callable[[], None]) -> Iterator[Finding]:
    for noise in ("skellam", "gaussian"):
        for one in audit_sums(noise):
            yield Finding(
                part="sums",
                what=f"{noise} noise, {one.survivors} survivors",
                found=f"epsilon >= {one.found:.2f}, variance x {one.variance:.3f}",
                claimed=f"epsilon = {one.claimed:.2f}, variance x 1",
                holds=one.holds,
                figures=dataclasses.asdict(one),
            )
        advance()


def _steps_found(advance: Callable[[], None]) -> Iterator[Finding]:
    for one in audit_steps():
        yield Finding(
            part="steps",
            what=f"one step, {one.setting}",
            found=f"epsilon >= {one.found:.2f}",
            claimed=f"epsilon = {one.claimed:.2f}",
            holds=one.holds,
            figures=dataclasses.asdict(one),
        )
    advance()


def _one_run(dataset: Dataset, advance: Callable[[], None]) -> Iterator[Finding]:
    images = torch.from_numpy(dataset.x_train)
    labels = torch.from_numpy(dataset.y_train)
    for epsilon in ONE_RUN_BUDGETS:
        one = audit_one_run(images - 0.5, labels, dataset.spec.classes, epsilon)
        advance()
        private = np.isfinite(epsilon)
        yield Finding(
            part="one-run",
            what=f"{one.correct} of {one.guesses} guesses right"
            + ("" if private else ", without noise"),
            found=f"epsilon >= {one.found:.2f}",
            claimed=f"epsilon = {epsilon:g}" if private else "nothing",
            holds=one.holds if private else None,
            figures=dataclasses.asdict(one) | {"claimed": epsilon if private else None},
        )


def _membership(subject: _Subject) -> Iterator[Finding]:
    folder = subject.folder
    for name, config in _variants(subject.config):
        kept = None if folder is None else folder / name.replace(" ", "-")
        found = audit_membership(config, subject.dataset, subject.shadows, kept, subject.advance)
        for one in found:
            low, high = one.interval
            yield Finding(
                part="membership",
                what=f"{name}: {one.victim} ({VICTIMS[one.victim]})",
                found=f"AUC {one.auc:.3f} ({low:.3f} to {high:.3f}), "
                f"{100 * one.tpr:.1f} % of members at 1 % false alarms",
                claimed="",
                holds=None,
                figures=dataclasses.asdict(one) | {"variant": name},
            )


def _variants(config: Config) -> Iterator[tuple[str, Config]]:
    resolved = resolve(config)
    if config.private:
        yield f"epsilon {config.privacy.dp_eps:g}", config
        options = {k: v for k, v in config.options().items() if not k.startswith(_PRIVACY)}
        kept = {"models": resolved.model.models, "rounds": resolved.dream.rounds}
        yield "without DP", Config.from_options(options | kept)
    else:
        yield "without DP", config


def _inversion(subject: _Subject) -> Iterator[Finding]:
    config, dataset = subject.config, subject.dataset
    images, labels = torch.from_numpy(dataset.x_train), torch.from_numpy(dataset.y_train)
    found = audit_inversion(images, labels, dataset.spec, epsilon=config.privacy.dp_eps or 8.0)
    for name, one_config in _variants(config):
        found += [
            dataclasses.replace(one, sent=f"{one.sent}, {name}")
            for one in _dream_gradients(one_config, dataset)
        ]
    for one in found:
        yield Finding(
            part="inversion",
            what=one.sent,
            found=f"PSNR {one.psnr:.1f} dB{', the pictures' if one.leaks else ''}",
            claimed=f"for free: {one.baseline:.1f} dB",
            holds=None,
            figures=dataclasses.asdict(one),
        )
    subject.advance()


def _differences(subject: _Subject) -> Iterator[Finding]:
    if subject.config.private_clients:
        subject.advance()
        return  # no gradient is ever sent
    simulation = Simulation(subject.config, dataset=subject.dataset, compare_independent=False)
    list(simulation.rounds())
    for one in audit_differences(simulation):
        sums = "one sum" if one.sums == 1 else f"{one.sums} sums"
        yield Finding(
            part="differences",
            what=f"{one.bits} bits, {sums} without a client, dreams {one.distance:g} RMS apart",
            found=f"correlation {one.correlation:.2f} with its gradient",
            claimed="",
            holds=None,
            figures=dataclasses.asdict(one),
        )
    subject.advance()


def _dream_gradients(config: Config, dataset: Dataset) -> list[Inversion]:
    """Return how much dream gradients of client 0, after a run, resemble its pictures."""
    if config.private_clients:
        return []  # no gradient is ever sent
    simulation = Simulation(config, dataset=dataset, compare_independent=False)
    list(simulation.rounds())
    everybody = simulation.federation
    gradient = _gradient_of(simulation, everybody.members[0].client.teacher)
    rows = everybody.all_parts[0]
    seen = torch.from_numpy(dataset.x_train[rows])
    unseen = torch.from_numpy(dataset.x_test[: len(rows)])
    return resemblance(gradient, seen[: len(unseen)], unseen)


def _gradient_of(simulation: Simulation, teacher: Teacher) -> Tensor:
    everybody = simulation.federation
    request = dream_request_of(simulation)
    values = dream_contribution(teacher, everybody.scale, request)["gradient"]
    return torch.from_numpy(values.astype(np.float32)).reshape(request.shape)
