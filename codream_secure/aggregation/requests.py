"""The public messages that the server broadcasts to clients: requests, labels, models.

A client's answer to a request has no message here: it goes through `protocols` as a masked input
(`sections` says of which parts). The digest of a request's *bytes* enters the derivation of every
mask (SPEC 3.2, D4), so a request carries everything that the client's computation depends on.
"""

import hashlib
from typing import ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

VERSION = 4
LabelKind = Literal["logits", "probabilities"]
LabelWeighting = Literal["equal", "confidence"]
Adversary = Literal["jsd", "kl"]
NoiseKind = Literal["skellam", "gaussian"]


class LocalSteps(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a client moves its own copy of the dreams before it answers (M steps, Algorithm 1).

    ``count`` steps along the negative gradient; a step moves a pixel whose gradient equals the
    request's clip by ``size`` scaled pixels. One step alone needs no move: its answer is the
    gradient at the broadcast dreams.
    """

    count: int = 1
    size: float = 0.1


class Student(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The server student's logits at the broadcast dreams, for adaptive teaching (R_adv).

    ``logits`` are float32, little-endian, shape (B, classes); ``bits`` and ``clip`` quantize the
    gradient of R_adv with respect to them.
    """

    logits: bytes
    classes: int
    adversary: Adversary
    weight: float
    bits: int
    clip: float


class NoisyTerms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The terms of a sum that is released only with noise (see `privacy.noisy_sum.NoisySum`).

    ``maximum`` is the largest code of one client. A client compares every field with the terms
    that it computed itself, and refuses others.
    """

    length: int
    l2: int
    variance: int
    cap: int
    maximum: int
    noise: NoiseKind


class LabelTerms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How clients shall label dreams: the same in a label request and beside a gradient.

    Attributes:
        bits, clip: of the quantizer; ``clip`` is the public range of a logit, or 1/2 for
            probabilities, which are sent as p - 1/2.
        kind: what is averaged.
        temperature: at which probabilities are taken.
        classes: number of classes.
        weighting: "confidence" multiplies a client's values at a dream by its confidence there,
            and asks for the confidences as a section of their own.
        noisy: under client-level DP, the terms of the noise; labels are then the integers of
            `privacy.client_labels`. Only a `LabelRequest` may have it.
    """

    bits: int
    clip: float
    kind: LabelKind
    temperature: float
    classes: int
    weighting: LabelWeighting = "equal"
    noisy: NoisyTerms | None = None


class DreamRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="dreams"
):
    """Asks for the gradient of the client's loss at these dreams.

    Attributes:
        version: of the encoding.
        round, batch, dream_step: position of the request in the run.
        shape: (B, C, H, W).
        dreams: B*C*H*W uint8 pixels.
        bits, clip: of the quantizer; ``clip`` is in units of the gradient of B times the loss with
            respect to a scaled pixel.
        entropy_weight, bn_weight, balance_weight: of the loss terms; 0 switches a term off.
        statistics_momentum: share of earlier dreams in R_bn's feature statistics, 0..1.
        local: with more than one step the answer is the pseudo-gradient: how far the client's
            copy moved, in units of the gradient.
        student: for adaptive teaching; None: without R_adv.
        weight_cap: W. A client with w examples multiplies its gradients by min(w, W) / W; 0: all
            clients count alike. Labels are never weighted: over the classes they add up to a
            known number, so their weighted sum would tell the sum of weights.
        labels: asks for soft labels of these dreams in the same answer.
        batches: how many parallel batches of equal size the dreams are; the loss is their sum.
    """

    version: int
    round: int
    batch: int
    dream_step: int
    shape: tuple[int, int, int, int]
    dreams: bytes
    bits: int
    clip: float
    entropy_weight: float
    bn_weight: float
    balance_weight: float
    statistics_momentum: float = 0.0
    local: LocalSteps = LocalSteps()
    student: Student | None = None
    weight_cap: int = 0
    labels: LabelTerms | None = None
    batches: int = 1


class LabelRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="labels"
):
    """Asks for soft labels of the finished dreams.

    ``labels`` says how they are labelled. With a ``statistics_momentum`` above 0 clients take these
    dreams into R_bn's running feature statistics. All other fields are those of `DreamRequest`.
    """

    version: int
    round: int
    batch: int
    shape: tuple[int, int, int, int]
    dreams: bytes
    labels: LabelTerms
    statistics_momentum: float = 0.0
    batches: int = 1


class SoftLabels(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="soft_labels"
):
    """The sums of ``count`` clients' labels, by section: field elements, packed as in SPEC 5.3.

    ``dreams`` is the `digest` of the pixels that were labelled: a client that was asked for labels
    in an attempt that was aborted, and missed the next, has others.
    """

    version: int
    round: int
    batch: int
    dreams: bytes
    count: int
    totals: tuple[bytes, ...]


class ModelRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="model"
):
    """Asks for the update of a model after local training (codream-messenger; FedAvg and its kin).

    ``model`` is the `digest` of the `ModelState` that clients start from; in the first round of
    the one that a public seed gives. With codream-messenger it is the digest of the common model
    that every client has, and ``round`` counts the sums of the run from 1. ``sizes`` and ``scales``
    are of its tensors, in order: how many numbers, and what their update is divided by before it
    is clipped to [-1, 1]. ``weight_cap`` as in `DreamRequest`, with the weights as a sum of their
    own.
    """

    version: int
    round: int
    model: bytes
    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    bits: int
    weight_cap: int = 0


class StatisticsRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="statistics"
):
    """Asks for class sums with noise, once a session, under the terms that every client knows.

    Its fields are those of `privacy.class_means.ClassMeanTerms`, and there is no counter: every
    request of a session has the same bytes, and no client answers the same bytes twice.
    """

    version: int
    shape: tuple[int, int, int, int]
    sum: NoisyTerms


class GradientRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="gradient"
):
    """Asks for the sum of all local examples' clipped gradients, with noise (distributed DP-SGD).

    ``model`` as in `ModelRequest`; ``step`` counts the noisy sums of the run from 1.
    """

    version: int
    round: int
    step: int
    model: bytes
    sum: NoisyTerms


class ModelState(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="state"
):
    """A model's numbers, in the order of its tensors, little-endian.

    With codream-messenger they are what is added to the common model, and ``round`` counts sums.

    Attributes:
        bits: 32: float32. 8: uint8 codes, of which ``ranges`` gives least value and step a tensor.
    """

    version: int
    round: int
    bits: int
    tensors: tuple[bytes, ...]
    ranges: tuple[tuple[float, float], ...] = ()


class EvaluateRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="evaluate"
):
    """Asks how well a site's own model does on its test part, over machines, once a round.

    An answer is two integers: the accuracy in units of 1 / ``SCALE``, and 1; or 0 and 0 of a
    client that has no such part, or keeps it to itself. How many examples there are is not sent:
    that is the same in every round, and the first dropout would tell it (D2).
    """

    SCALE: ClassVar[int] = 10_000

    version: int
    round: int


Request = DreamRequest | LabelRequest
Asked = Request | ModelRequest | GradientRequest | StatisticsRequest | EvaluateRequest
# What is asked of a client that has a part in dreams, or in the common model beside them.
AskedOfClient = Request | StatisticsRequest | EvaluateRequest | ModelRequest | GradientRequest


def encode(message: Asked | SoftLabels | ModelState) -> bytes:
    """Return the one canonical encoding of a broadcast."""
    return msgspec.msgpack.encode(message)


def asked_labels(request: Asked) -> LabelRequest | None:
    """Return the label request that ``request`` is or contains; None if it asks for no labels."""
    if isinstance(request, LabelRequest):
        return request
    if not isinstance(request, DreamRequest) or request.labels is None:
        return None
    return LabelRequest(
        version=request.version,
        round=request.round,
        batch=request.batch,
        shape=request.shape,
        dreams=request.dreams,
        labels=request.labels,
        statistics_momentum=request.statistics_momentum,
        batches=request.batches,
    )


def digest(data: bytes) -> bytes:
    """Return the 32-byte digest of a broadcast that masks are bound to (D4)."""
    return hashlib.sha256(b"codream-secure broadcast\x00" + data).digest()


def pixels(request: Request) -> NDArray[np.uint8]:
    """Return the request's dreams, uint8, shape (B, C, H, W)."""
    return np.frombuffer(request.dreams, dtype=np.uint8).reshape(request.shape)


def payload(request: Asked) -> int:
    """Return the bytes of a request that are dreams, or the student's logits at them."""
    if not isinstance(request, DreamRequest | LabelRequest):
        return 0
    student = request.student if isinstance(request, DreamRequest) else None
    return len(request.dreams) + (len(student.logits) if student else 0)


def student_logits(student: Student) -> NDArray[np.float32]:
    """Return the student's logits, float32, shape (B, classes)."""
    return np.frombuffer(student.logits, dtype="<f4").reshape(-1, student.classes)
