"""A site's policy file: what it may say, and that every bound of it is a refusal."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from codream_secure.aggregation.requests import (
    DreamRequest,
    LabelRequest,
    LabelTerms,
    LocalSteps,
    Student,
)
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config, settings
from codream_secure.errors import RequestRefused, UserError
from codream_secure.sites.policy import FILE, SitePolicy
from codream_secure.sites.proposals import (
    OPTION_BOUNDS,
    check_options,
    check_request,
    check_task,
    check_terms,
)
from codream_secure.sites.session import Terms
from protocols.params import Section, Task

ROOT = Path(__file__).parents[3]
DEFAULT = SitePolicy()
TERMS = Terms(
    clients=4,
    threshold=3,
    threat_model="malicious",
    colluders=1,
    key_steps=4,
    rejoin=False,
    kinds=("DreamRequest",),
)
LABELS = LabelTerms(bits=8, clip=0.5, kind="probabilities", temperature=4.0, classes=2)
STUDENT = Student(
    np.array([[3, -4]], "<f4").tobytes(), classes=2, adversary="kl", weight=1.0, bits=8, clip=1.0
)
DREAMS = DreamRequest(
    version=3,
    round=1,
    batch=0,
    dream_step=0,
    shape=(2, 1, 2, 2),
    dreams=bytes(8),
    bits=4,
    clip=1.0,
    entropy_weight=1.0,
    bn_weight=1.0,
    balance_weight=1.0,
    statistics_momentum=0.5,
    local=LocalSteps(4, 0.5),
    student=STUDENT,
    weight_cap=100,
    labels=LABELS,
    batches=2,
)
SECTION = Section(name="x", length=10, maximum=15, clip=1.0)
TASK = Task(step=0, kind="DreamRequest", sections=(SECTION,), broadcast_digest=bytes(32))
OPTIONS = resolve(Config.from_options({"samples_per_client": 30, "width": 8})).options()
PRIVATE = resolve(Config.from_options({"dp_eps": 8.0, "dp_lr": 1.0, "dp_batch": 20})).options()


def terms(**changes):
    return lambda policy: check_terms(policy, msgspec.structs.replace(TERMS, **changes))


def task(**changes):
    return lambda policy: check_task(policy, replace(TASK, sections=(replace(SECTION, **changes),)))


def request(**changes):
    return lambda policy: check_request(policy, msgspec.structs.replace(DREAMS, **changes))


def student(**changes):
    return request(student=msgspec.structs.replace(STUDENT, **changes))


def labels(**changes):
    found = LabelRequest(
        3, 1, 0, DREAMS.shape, DREAMS.dreams, msgspec.structs.replace(LABELS, **changes)
    )
    return lambda policy: check_request(policy, found)


def option(name, value, base=OPTIONS):
    return lambda policy: check_options(policy, {**base, name: value})


def logits(value):
    return student(logits=np.array([[0, value]], "<f4").tobytes())


# For every entry of the file: what narrows it, and proposals that this refuses. What is checked
# elsewhere has its own test, which is named.
CASES = {
    "colluders": (2, [terms()]),
    "min_cohort": (4, [terms()]),
    "max_clients": (3, [terms()]),
    "rejoin": (False, [terms(rejoin=True)]),
    "kinds": (("LabelRequest",), [task()]),
    "datasets": (("mnist",), [option("dataset", "digits")]),
    "models": (("mlp",), [option("models", "mlp, lenet5"), option("models", "os:getcwd")]),
    "max_vector": (9, [task()]),
    "max_bits": (
        3,
        [
            task(maximum=8),
            request(),
            student(bits=8),
            labels(bits=8),
            option("bits", 4),
            option("label_bits", 4),
            option("adaptive_bits", 4),
        ],
    ),
    "min_clip": (
        0.6,
        [
            task(clip=0.5),
            request(clip=1e-30),
            student(clip=0.5),
            labels(),
            option("label_clip", 0.1),
        ],
    ),
    "max_clip": (
        20.0,
        [task(clip=21.0), request(clip=1e300), student(clip=21), labels(clip=21)],
    ),
    "max_weight_cap": (0, [request(), option("weights", "examples")]),
    "max_key_steps": (3, [terms()]),
    "max_dreams": (1, [request(), option("dreams", 2)]),
    "max_batches": (1, [request()]),
    "max_local_steps": (3, [request(), option("local_steps", 4)]),
    "max_local_size": (0.05, [request(), request(local=LocalSteps(1, float("nan")))]),
    "max_entropy_weight": (0.5, [request(), request(entropy_weight=float("inf"))]),
    "max_bn_weight": (0.5, [request(), request(bn_weight=-1.0), option("bn_weight", 1.0)]),
    "max_balance_weight": (0.5, [request(), request(balance_weight=float("nan"))]),
    "max_adaptive_weight": (0.5, [student(), option("adaptive_weight", 1.0)]),
    "max_momentum": (0.4, [request(), option("statistics_momentum", 0.5)]),
    "min_temperature": (
        5.0,
        [labels(), request(), labels(temperature=1e-300), option("kd_temperature", 4.0)],
    ),
    "max_temperature": (3.0, [labels(), labels(temperature=float("inf"))]),
    "max_student_logit": (3.5, [student(), logits(np.nan), logits(-np.inf)]),
    "max_rounds": (5, [option("rounds", 6)]),
    "max_dream_steps": (5, [option("dream_steps", 6)]),
    "max_dream_batches": (1, [option("dream_batches", 2)]),
    "max_warmup_epochs": (5, [option("warmup_epochs", 6)]),
    "max_local_epochs": (0, [option("local_epochs", 1)]),
    "max_kd_epochs": (5, [option("kd_epochs", 6)]),
    "max_batch": (
        10,
        [option("batch", 11), option("kd_batch", 11), option("dp_batch", 11, PRIVATE)],
    ),
    "max_buffer": (3, [option("buffer", 4)]),
    "max_samples": (29, [option("samples_per_client", 30)]),
    "max_width": (7, [option("width", 8)]),
    "max_learning_rate": (1e-3, [option("learning_rate", 2e-3)]),
    "max_weight_decay": (0.01, [option("weight_decay", 0.1)]),
    "max_dp_lr": (0.5, [option("dp_lr", 1.0, PRIVATE)]),
    "max_dp_clip": (0.2, [option("dp_clip", 0.5, PRIVATE)]),
    "min_dp_clip": (0.6, [option("dp_clip", 0.5, PRIVATE)]),
    "max_dp_steps": (10, [option("dp_steps", 40, PRIVATE)]),
}
ELSEWHERE = {
    "epsilon": "test_allowance",
    "delta": "test_allowance",
    "unit": "test_run_terms",
    "max_model_value": "test_secure_mod",
    "max_config_value": "test_secure_mod",
    "sessions_per_day": "test_site_log",
    "sessions_total": "test_site_log",
    "sessions": "test_site_log",
    "answer_every": "test_pace",
    "returns": "test_cohorts",
    "small_differences": "test_cohorts",
    "similar_pixels": "test_cohorts",
}


def test_every_entry_of_the_file_has_a_case():
    assert set(CASES) | set(ELSEWHERE) == set(SitePolicy.__struct_fields__)


@pytest.mark.parametrize("name", CASES)
def test_every_bound_is_a_refusal(name):
    value, proposals = CASES[name]
    narrow = msgspec.structs.replace(DEFAULT, **{name: value})
    for propose in proposals:
        with pytest.raises(RequestRefused, match=name if name != "colluders" else "too low"):
            propose(narrow)


def test_the_defaults_allow_what_the_cases_propose():
    for propose in (terms(), task(), request(), student()):
        propose(DEFAULT)
    check_options(DEFAULT, OPTIONS)
    check_options(DEFAULT, PRIVATE)


@pytest.mark.parametrize("clip", [1e-30, 1e300, 0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_that_would_single_out_a_site_is_refused_by_default(clip):
    with pytest.raises(RequestRefused, match="_clip"):
        check_request(DEFAULT, msgspec.structs.replace(DREAMS, clip=clip))


# Options that change nothing at a site, or whose range is in their type or in another check.
SERVER_ONLY = {
    "tv_weight", "l2_weight", "latent", "generator_width", "generator_lr", "latent_lr", "meta_lr",
    "generator_decay", "generator_average", "generator_norm", "generator_reset", "dream_lr",
    "statistics_weight", "adaptive_start", "dropout", "image_size",
    # Of a method that no site takes part in.
    "messenger_sums", "messenger_bits", "messenger_steps",
}  # fmt: skip
BOUNDED = {
    "clients", "threshold", "key_steps", "graph_corrupt", "graph_silent",  # check_terms
    "dp_eps", "dp_delta", "statistics_eps", "noise_colluders",  # allowance
    "validation", "prior_correction", "dp_warmup", "kd_period", "seed",  # harmless in their range
}  # fmt: skip


def test_every_number_among_a_runs_options_is_bounded_or_known_to_be_harmless():
    numbers = {one.name for one in settings() if one.kind in (int, float)}
    assert numbers == set(OPTION_BOUNDS) | SERVER_ONLY | BOUNDED


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colluder = 1", "unknown entry 'colluder'"),
        ("max_clip = 1e300", "max_clip = 1e+300: expected `float` <= "),
        ("max_clip = nan", "max_clip = nan is no finite number"),
        ("max_temperature = inf", "is no finite number"),
        ("min_clip = 2.0\nmax_clip = 1.0", "min_clip is above max_clip"),
        ("max_bits = 26", "max_bits = 26: expected `int` <= 25"),
        ("max_bits = true", "max_bits = True: expected `int`"),
        ("epsilon = 0", "epsilon = 0"),
        ("delta = '1e-5'", "delta = '1e-5': expected `float`"),
        ("sessions = ['12']", "sessions"),
        ("rejoin = 1", "rejoin = 1: expected `bool`"),
        ("a b", "is not a TOML file"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_what_is_wrong(tmp_path, text, told):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError) as caught:
        SitePolicy.beside(tmp_path / "0")
    line = str(caught.value)
    assert str(tmp_path / FILE) in line
    assert told in line
    assert "\n" not in line


def test_without_a_file_the_defaults_hold_and_whole_numbers_are_numbers(tmp_path):
    assert SitePolicy.beside(tmp_path / "0") == DEFAULT
    (tmp_path / FILE).write_text("epsilon = 8\nmax_clip = 4\nkinds = ['fedavg-train']")
    found = SitePolicy.beside(tmp_path / "0")
    assert (found.epsilon, found.max_clip, found.kinds) == (8.0, 4.0, ("fedavg-train",))


def test_the_example_file_names_every_entry_with_its_default():
    text = (ROOT / "examples" / "flower" / FILE).read_text(encoding="utf-8")
    entries = "\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line)
    found = tomllib.loads(entries)
    without = {n for n, value in msgspec.structs.asdict(DEFAULT).items() if value is None}
    assert set(found) == set(SitePolicy.__struct_fields__)
    kept = {name: value for name, value in found.items() if name not in without}
    assert SitePolicy.of(kept) == DEFAULT
    assert SitePolicy.of(found)


def test_policies_need_no_pytorch():
    code = "import sys, codream_secure.sites.proposals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
