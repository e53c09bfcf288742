"""Checks what a server proposes against the site's policy, before anything private is computed.

The checks see public facts alone: what the server sent, and the policy. No PyTorch here.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from codream_secure.aggregation.requests import (
    AskedOfClient,
    DreamRequest,
    LabelRequest,
    LabelTerms,
    Student,
    student_logits,
)
from codream_secure.errors import RequestRefused
from codream_secure.sites.policy import SitePolicy
from codream_secure.sites.session import Terms
from protocols.params import Task, default_threshold
from protocols.policy import most_colluders

_CLIP = ("min_clip", "max_clip")
_TEMPERATURE = ("min_temperature", "max_temperature")
# Options of a run that decide how much, how long or how a site computes, with their bounds.
OPTION_BOUNDS: Mapping[str, tuple[str, ...]] = {
    "rounds": ("max_rounds",),
    "dreams": ("max_dreams",),
    "dream_batches": ("max_dream_batches",),
    "dream_steps": ("max_dream_steps",),
    "local_steps": ("max_local_steps",),
    "local_size": ("max_local_size",),
    "bits": ("max_bits",),
    "adaptive_bits": ("max_bits",),
    "label_bits": ("max_bits",),
    "entropy_weight": ("max_entropy_weight",),
    "bn_weight": ("max_bn_weight",),
    "balance_weight": ("max_balance_weight",),
    "adaptive_weight": ("max_adaptive_weight",),
    "statistics_momentum": ("max_momentum",),
    "weight_cap": ("max_weight_cap",),
    "label_clip": _CLIP,
    "kd_temperature": _TEMPERATURE,
    "kd_epochs": ("max_kd_epochs",),
    "kd_batch": ("max_batch",),
    "batch": ("max_batch",),
    "dp_batch": ("max_batch",),
    "buffer": ("max_buffer",),
    "learning_rate": ("max_learning_rate",),
    "weight_decay": ("max_weight_decay",),
    "warmup_epochs": ("max_warmup_epochs",),
    "local_epochs": ("max_local_epochs",),
    "samples_per_client": ("max_samples",),
    "width": ("max_width",),
    "dp_lr": ("max_dp_lr",),
    "dp_clip": ("min_dp_clip", "max_dp_clip"),
    "dp_steps": ("max_dp_steps",),
}


def check_terms(policy: SitePolicy, terms: Terms) -> None:
    """Refuse terms of a session that protect less than the policy asks for.

    Raises:
        RequestRefused: which bound does not hold.
    """
    n, threshold, model = terms.clients, terms.threshold, terms.threat_model
    policy.check("the number of sites", n, "max_clients")
    wanted = policy.colluders
    if wanted is None:
        wanted = most_colluders(n, default_threshold(n), model)
    if most_colluders(n, threshold, model) < wanted:
        raise RequestRefused(
            f"threshold {threshold} of {n} is too low: this site counts on up to {wanted} colluders"
        )
    if terms.chosen is not None and terms.colluders < wanted:
        raise RequestRefused(
            f"--graph chosen is made for {terms.colluders} colluders of {n}, and this site counts "
            f"on up to {wanted}: its policy's colluders"
        )
    policy.check("threshold", threshold, "min_cohort")
    policy.check("the steps of a key exchange", terms.key_steps, "max_key_steps")
    if model == "malicious" and terms.rejoin and not policy.rejoin:
        raise RequestRefused("this site does not allow rejoining: rejoin = true in its policy")


def check_options(
    policy: SitePolicy, options: Mapping[str, object], *, own_model: bool = False
) -> None:
    """Refuse settings of a run that are beyond the policy.

    Args:
        policy: the site's.
        options: of the run, resolved; `Config.options`.
        own_model: whether the site brings its own architecture.

    Raises:
        RequestRefused: which setting is beyond which bound.
    """
    policy.check_name("dataset", options.get("dataset"), "datasets")
    # A name may be a function, and a server must not have just any installed one called.
    for name in () if own_model else str(options.get("models")).split(","):
        policy.check_name("model", name.strip(), "models")
    if options.get("weights") == "examples":
        policy.check("weights by examples, a cap of at least", 1, "max_weight_cap")
    for name, bounds in OPTION_BOUNDS.items():
        value = options.get(name)
        if isinstance(value, int | float):
            policy.check(name, value, *bounds)


def check_task(policy: SitePolicy, task: Task) -> None:
    """Refuse a sum of a kind or of sections that the policy excludes.

    Raises:
        RequestRefused: which bound does not hold.
    """
    policy.check_name("kind", task.kind, "kinds")
    policy.check(
        "an answer's length", sum(section.length for section in task.sections), "max_vector"
    )
    for section in task.sections:
        policy.check(f"the clip of {section.name!r}", section.clip, *_CLIP)
        policy.check(f"the bits of {section.name!r}", section.maximum.bit_length(), "max_bits")


def check_request(policy: SitePolicy, request: AskedOfClient) -> None:
    """Refuse a request that holds a number beyond the policy.

    Raises:
        RequestRefused: which number is beyond which bound.
    """
    if isinstance(request, DreamRequest | LabelRequest):
        for what, value, bounds in _numbers(request):
            policy.check(what, value, *bounds)


_Number = tuple[str, float, tuple[str, ...]]


def _numbers(request: DreamRequest | LabelRequest) -> Iterator[_Number]:
    """Yield every number of a request that a computation depends on, with its bounds."""
    yield "dreams", request.shape[0], ("max_dreams",)
    yield "batches", request.batches, ("max_batches",)
    yield from _between("statistics_momentum", request.statistics_momentum, "max_momentum")
    if isinstance(request, DreamRequest):
        yield "weight_cap", request.weight_cap, ("max_weight_cap",)
        yield "clip", request.clip, _CLIP
        yield "bits", request.bits, ("max_bits",)
        yield from _between("entropy_weight", request.entropy_weight, "max_entropy_weight")
        yield from _between("bn_weight", request.bn_weight, "max_bn_weight")
        yield from _between("balance_weight", request.balance_weight, "max_balance_weight")
        yield "local.count", request.local.count, ("max_local_steps",)
        yield from _between("local.size", request.local.size, "max_local_size")
        if request.student is not None:
            yield from _student(request.student)
    if request.labels is not None:
        yield from _labels(request.labels)


def _between(what: str, value: float, bound: str) -> Iterator[_Number]:
    """Yield a number that must not be negative either."""
    if value < 0:
        raise RequestRefused(f"{what} {value} is outside 0 to {bound}")
    yield what, value, (bound,)


def _student(student: Student) -> Iterator[_Number]:
    yield "student.clip", student.clip, _CLIP
    yield "student.bits", student.bits, ("max_bits",)
    yield from _between("student.weight", student.weight, "max_adaptive_weight")
    # A NaN among them makes the largest one NaN, which no bound allows.
    largest = float(np.abs(student_logits(student)).max(initial=0.0))
    yield "student.logits", largest, ("max_student_logit",)


def _labels(labels: LabelTerms) -> Iterator[_Number]:
    yield "labels.clip", labels.clip, _CLIP
    yield "labels.bits", labels.bits, ("max_bits",)
    yield "labels.temperature", labels.temperature, _TEMPERATURE
