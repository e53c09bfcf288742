"""What a client answers, and what it refuses."""

import copy
import dataclasses
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from codream_secure.aggregation.requests import (
    VERSION,
    DreamRequest,
    LabelRequest,
    LabelTerms,
    LocalSteps,
    Student,
    encode,
)
from codream_secure.config.rules import resolve
from codream_secure.config.settings import Config
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec, Scaling
from codream_secure.dreaming.feature_statistics import StatisticsMemory
from codream_secure.dreaming.group import synthesis_settings, weight_cap
from codream_secure.dreaming.teacher import Teacher, dream_gradient
from codream_secure.errors import RequestRefused
from codream_secure.federation.answer_rules import AnswerRules
from codream_secure.federation.client import Client
from codream_secure.learning.compute import Work
from codream_secure.models.build import build_model
from protocols.quantization import Quantizer

SCALE = PixelScale(Scaling((0.5,), (0.5,)))
MODEL = build_model("resnet8", InputSpec(1, 8, 8, 10), norm="batch", seed=0).eval()
MODEL.requires_grad_(False)


def dream_request(**changes):
    values = {
        "version": VERSION,
        "round": 1,
        "batch": 0,
        "dream_step": 0,
        "shape": (2, 1, 8, 8),
        "dreams": bytes(range(128)),
        "bits": 8,
        "clip": 1.0,
        "entropy_weight": 1.0,
        "bn_weight": 10.0,
        "balance_weight": 1.0,
    }
    return DreamRequest(**(values | changes))


def student(**changes):
    values = {
        "logits": np.arange(20, dtype="<f4").tobytes(),
        "classes": 10,
        "adversary": "jsd",
        "weight": 1.0,
        "bits": 8,
        "clip": 1.0,
    }
    return Student(**(values | changes))


def label_request(**changes):
    values = {
        "version": VERSION,
        "round": 1,
        "batch": 0,
        "shape": (2, 1, 8, 8),
        "dreams": bytes(range(128)),
    }
    terms = {"bits": 8, "clip": 0.5, "kind": "probabilities", "temperature": 4.0, "classes": 10}
    terms |= {k: changes.pop(k) for k in LabelTerms.__struct_fields__ if k in changes}
    return LabelRequest(labels=LabelTerms(**terms), **(values | changes))


def client(**rules):
    learner = SimpleNamespace(frozen_copy=lambda: MODEL, bf16=False, work=Work())
    return Client(learner, SCALE, bytes(32), AnswerRules(**rules))


def test_the_answer_is_the_quantized_gradient_at_the_broadcast_pixels():
    request = dream_request()
    codes = client().answer(encode(request), step=5)["gradient"]
    dreams = SCALE.from_pixels(np.frombuffer(request.dreams, np.uint8).reshape(request.shape))
    gradient, _ = dream_gradient(Teacher(MODEL, StatisticsMemory()), dreams, request)
    quantizer = Quantizer(255, 1.0)
    expected = quantizer.encode(gradient.numpy(), seed=bytes(32), step=5, section="gradient")
    assert (codes == expected).all()


def test_labels_are_quantized_probabilities():
    codes = client().answer(encode(label_request(bits=12)), step=0)["labels"]
    decoded = Quantizer(4095, 0.5).decode_sum(codes, 1).reshape(2, 10) + 0.5
    assert decoded.sum(1) == pytest.approx([1, 1], abs=0.01)


def test_a_broadcast_is_answered_once():
    one = client()
    one.answer(encode(dream_request()), step=0)
    with pytest.raises(RequestRefused, match="answered before"):
        one.answer(encode(dream_request()), step=1)
    one.answer(encode(dream_request(dream_step=1)), step=1)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (dream_request(clip=1e9), "clip"),
        (dream_request(clip=0.0), "clip"),
        (dream_request(clip=float("nan")), "clip"),
        (dream_request(bits=17), "bits"),
        (label_request(bits=0), "bits"),
        (dream_request(version=VERSION + 1), "version"),
        (dream_request(dreams=bytes(5)), "shape"),
        (dream_request(local=LocalSteps(0, 0.1)), "local steps"),
        (dream_request(local=LocalSteps(65, 0.1)), "local steps"),
        (dream_request(local=LocalSteps(2, float("nan"))), "size nan"),
        (dream_request(local=LocalSteps(2, 0.0)), "size 0"),
        (dream_request(student=student(clip=1e9)), "clip"),
        (dream_request(student=student(bits=0)), "bits"),
        (dream_request(student=student(logits=bytes(76))), "student's logits"),
    ],
)
def test_requests_outside_the_rules_are_refused(request_, reason):
    with pytest.raises(RequestRefused, match=reason):
        client().answer(encode(request_), step=0)


def test_under_dp_feature_statistics_are_refused():
    private = client(allow_feature_statistics=False)
    with pytest.raises(RequestRefused, match="not private"):
        private.answer(encode(dream_request()), step=0)
    private.answer(encode(dream_request(bn_weight=0.0)), step=0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        encode(dream_request())[:-1],
        encode(dream_request()) + b"\x00",
        msgspec.msgpack.encode(["soft_labels", 1, 1, 0, 3, b""]),
        msgspec.json.encode(dream_request()),
    ],
)
def test_bytes_that_are_no_request_are_refused(data):
    with pytest.raises(RequestRefused):
        client().answer(data, step=0)


def test_a_refused_request_computes_nothing(monkeypatch):
    def fail(*_):
        raise AssertionError("computed")

    one = client()
    monkeypatch.setattr("codream_secure.federation.client.dream_contribution", fail)
    with pytest.raises(RequestRefused):
        one.answer(encode(dream_request(clip=1e9)), step=0)


def test_the_teacher_is_a_copy_until_it_is_frozen_again():
    model = build_model("linear", InputSpec(1, 8, 8, 10), norm="batch", seed=0)
    copies = iter(
        [model.eval(), build_model("linear", InputSpec(1, 8, 8, 10), norm="batch", seed=1)]
    )
    learner = SimpleNamespace(frozen_copy=lambda: next(copies), bf16=False, work=Work())
    one = Client(learner, SCALE, bytes(32), AnswerRules())
    first = one.answer(encode(label_request()), step=0)["labels"]
    one.freeze_teacher()
    second = one.answer(encode(label_request(round=2)), step=0)["labels"]
    assert (first != second).any()


def test_answer_rules_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AnswerRules().max_bits = 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_answers_on_a_gpu_match_the_cpu_within_rounding():
    scale = PixelScale(Scaling((0.5,), (0.5,)), "cuda")
    learner = SimpleNamespace(frozen_copy=MODEL.cuda, bf16=False, work=Work())
    on_gpu = Client(learner, scale, bytes(32), AnswerRules()).answer(encode(label_request()), 0)
    MODEL.cpu()
    on_cpu = client().answer(encode(label_request()), 0)
    assert np.abs(on_gpu["labels"].astype(int) - on_cpu["labels"].astype(int)).max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_dream_gradient_on_a_gpu_is_that_of_the_cpu_and_waits_for_no_copy():
    request, model = dream_request(), copy.deepcopy(MODEL).cuda()
    scale = PixelScale(Scaling((0.5,), (0.5,)), "cuda")
    images = np.frombuffer(request.dreams, np.uint8).reshape(request.shape)
    there, here = scale.from_pixels(images), SCALE.from_pixels(images)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu, _ = dream_gradient(Teacher(model, StatisticsMemory()), there, request)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    on_cpu, _ = dream_gradient(Teacher(MODEL, StatisticsMemory()), here, request)
    assert torch.allclose(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=1e-4 * float(on_cpu.abs().max()))


def weighing(examples, **rules):
    learner = SimpleNamespace(frozen_copy=lambda: MODEL, bf16=False, work=Work())
    return Client(learner, SCALE, bytes(32), AnswerRules(**rules), examples=examples)


def test_a_weighted_gradient_is_scaled_and_carries_no_weight_of_its_own():
    asked = dream_request(bits=16)
    equal = weighing(7).answer(encode(asked), step=0)
    weighted = weighing(7).answer(encode(dream_request(bits=16, weight_cap=10)), step=0)
    assert weighted.keys() == {"gradient"}
    decode = Quantizer(2**16 - 1, 1.0).decode_sum
    assert decode(weighted["gradient"], 1) == pytest.approx(
        0.7 * decode(equal["gradient"], 1), abs=1e-4
    )


@pytest.mark.parametrize("weighting", ["equal", "confidence"])
def test_labels_are_the_same_whatever_the_number_of_examples(weighting):
    """Over the classes labels add up to a known number: weighted, they told the sum of weights."""
    asked = dream_request(weight_cap=1000, labels=label_request(weighting=weighting).labels)
    few, many = (weighing(examples).answer(encode(asked), step=0) for examples in (3, 900))
    assert (few["gradient"] != many["gradient"]).any()
    assert few.keys() == many.keys() == {"gradient", *_of_labels(weighting)}
    for name in _of_labels(weighting):
        assert (few[name] == many[name]).all()


def _of_labels(weighting):
    return {"labels", "confidence"} if weighting == "confidence" else {"labels"}


def test_the_sum_of_weights_cannot_be_read_from_labels_any_more():
    """The reader of issue 17.5: it had 4,863 as 4,862.6 of ten clients."""
    weights, cap = (30, 400, 77, 900, 5), 1000
    asked = dream_request(weight_cap=cap, bits=16, labels=label_request(bits=16).labels)
    classes = asked.labels.classes
    size = asked.shape[0] * classes
    quantizer = Quantizer(2**16 - 1, asked.labels.clip)
    told = np.zeros(size)
    for weight in weights:
        codes = weighing(weight).answer(encode(asked), step=0)["labels"]
        told += quantizer.decode_sum(codes.astype(np.int64), 1)
    read = cap * told.sum() / (asked.shape[0] * (1 - classes / 2))
    assert read == pytest.approx(cap * len(weights), rel=1e-3)  # the number of clients, no more


CONFIG = {"models": "mlp", "dreams": 5, "dataset": "digits"}
AGREED = InputSpec(1, 4, 4, 3)


def agreeing(**options):
    config = resolve(Config.from_options({**CONFIG, **options}))
    return AnswerRules.of(config, AGREED, share=50), config


def run_request(config, **changes):
    """Return the request that the run's own server makes."""
    settings = synthesis_settings(config, AGREED, weight_cap(config, 50))
    fixed = {"version": VERSION, "round": 1, "batch": 0, "dream_step": 0, "dreams": bytes(80)}
    values = {**fixed, "shape": (5, 1, 4, 4), "clip": 1.0, **settings.of_dreams}
    return DreamRequest(**{**values, **changes}), settings.of_labels()


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_cap": 200},
        {"bits": 7},
        {"entropy_weight": 3.0},
        {"bn_weight": 9.0},
        {"balance_weight": 0.5},
        {"statistics_momentum": 0.1},
        {"local": LocalSteps(2, 0.1)},
        {"shape": (1, 1, 4, 4), "dreams": bytes(16)},
        {"batches": 5},
        {"student": Student(bytes(60), 3, "kl", 1.0, 8, 1.0)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_request_that_is_not_the_runs_is_refused(changes):
    """A run with equal weights answered any `weight_cap`, and any other number."""
    rules, config = agreeing()
    request, _ = run_request(config)
    rules.check(request)
    with pytest.raises(RequestRefused, match="the run"):
        rules.check(msgspec.structs.replace(request, **changes))


@pytest.mark.parametrize(
    "changes", [{"temperature": 9.0}, {"bits": 3}, {"weighting": "confidence"}, {"classes": 4}]
)
def test_labels_that_are_not_the_runs_are_refused(changes):
    rules, config = agreeing()
    request, labels = run_request(config)
    asked = LabelRequest(VERSION, 1, 0, request.shape, request.dreams, labels)
    asked = msgspec.structs.replace(asked, statistics_momentum=request.statistics_momentum)
    rules.check(asked)
    with pytest.raises(RequestRefused, match="the run's"):
        rules.check(
            msgspec.structs.replace(asked, labels=msgspec.structs.replace(labels, **changes))
        )


def test_the_cap_of_weights_is_the_runs_own():
    rules, config = agreeing(weights="examples")
    request, _ = run_request(config)
    assert request.weight_cap == 200  # four even shares
    rules.check(request)
    for cap in (0, 1, 199, 201):
        with pytest.raises(RequestRefused, match="weight_cap"):
            rules.check(msgspec.structs.replace(request, weight_cap=cap))


def test_a_nearly_repeated_broadcast_is_answered_which_is_a_documented_limit():
    """One changed number, even one without effect, is another digest (SECURITY.md, D1)."""
    answering, request = client(), dream_request()
    first = answering.answer(encode(request), step=0)["gradient"]
    with pytest.raises(RequestRefused, match="answered before"):
        answering.answer(encode(request), step=1)
    for step, change in enumerate([{"round": 2}, {"dreams": b"\1" + request.dreams[1:]}], start=1):
        again = msgspec.structs.replace(request, **change)
        codes = answering.answer(encode(again), step=step)["gradient"].astype(int)
        assert np.abs(codes - first.astype(int)).max() < 60
