"""What the server broadcasts to the clients (public), in the order of a synthesis.

A client's answer to a request is never here: it goes through `protocols` as a masked input.
The digest of a request's *bytes* enters the derivation of every mask (SPEC 3.2, D4), so a
request carries everything that the client's computation depends on.
"""

import hashlib
import math
from typing import ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_secure.errors import RequestRefused
from protocols.errors import ConfigError
from protocols.params import MAX_INPUT, Section

VERSION = 2
MAX_BITS = (MAX_INPUT - 1).bit_length()
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


class Labels(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is asked of labels that travel with a gradient; as in `LabelRequest`."""

    bits: int
    clip: float
    kind: LabelKind
    temperature: float
    classes: int
    weighting: LabelWeighting = "equal"


class NoisyTerms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The terms of a sum that exists only with noise: those of `privacy.noisy_sum.NoisySum`.

    ``maximum`` is the largest code; clients compare all of it with the terms they know.
    """

    length: int
    l2: int
    variance: int
    cap: int
    maximum: int
    noise: NoiseKind


class DreamRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="dreams"
):
    """Asks for the gradient of the client's loss at these dreams.

    ``shape`` is (B, C, H, W); ``dreams`` is B*C*H*W uint8 pixels; ``clip`` is in units of the
    gradient of the B-fold loss with respect to a scaled pixel. With more than one local step
    the answer is the pseudo-gradient: how far the copy moved, in the same units.
    ``statistics_momentum`` is the share of earlier dreams in R_bn's statistics.
    ``weight_cap`` W: a client with w examples multiplies what it sends by min(w, W) / W; 0: clients
    count alike. ``labels``: asks for soft labels of these dreams in the same answer. ``batches``:
    as how many batches of one size the dreams count, side by side: the loss is the sum of theirs.
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
    labels: Labels | None = None
    batches: int = 1


class LabelRequest(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="labels"
):
    """Asks for soft labels of the finished dreams.

    ``clip`` is the public range of a logit; probabilities are sent as p - 1/2 with clip 1/2.
    ``weighting`` by confidence multiplies a client's values at one dream by its confidence there,
    and asks for the confidences as a sum of their own. ``statistics_momentum`` tells clients to
    take these dreams into R_bn's running statistics; 0: not. ``weight_cap`` as in `DreamRequest`;
    with it, unless confidences are asked for, weights are a sum of their own. ``noisy``: under
    client-level DP, the terms of the noise; labels are then integers of `privacy.client_labels`.
    ``batches`` as in `DreamRequest`.
    """

    version: int
    round: int
    batch: int
    shape: tuple[int, int, int, int]
    dreams: bytes
    bits: int
    clip: float
    kind: LabelKind
    temperature: float
    classes: int
    weighting: LabelWeighting = "equal"
    statistics_momentum: float = 0.0
    weight_cap: int = 0
    noisy: NoisyTerms | None = None
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
    """Asks for the update of a model after local training (FedAvg and its kin, to compare).

    ``model`` is the `digest` of the `ModelState` that clients start from; in the first round of
    the one that a public seed gives. ``sizes`` and ``scales`` are of its tensors, in order: how
    many numbers, and what their update is divided by before it is clipped to [-1, 1].
    ``weight_cap`` as in `DreamRequest`, with the weights as a sum of their own.
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

    All fields are those of `privacy.class_means.ClassMeanTerms`, and nothing else is here:
    a second request is the same bytes, which no client answers twice.
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
# What is asked of a client that has a part in dreams.
AskedOfClient = Request | StatisticsRequest | EvaluateRequest
_REQUEST_DECODER = msgspec.msgpack.Decoder(AskedOfClient)
_MODEL_DECODER = msgspec.msgpack.Decoder(ModelRequest | GradientRequest)


def encode(message: Asked | SoftLabels | ModelState) -> bytes:
    """Return the one canonical encoding of a broadcast."""
    return msgspec.msgpack.encode(message)


def decode_request(data: bytes) -> AskedOfClient:
    """Decode a request as a client does.

    Raises:
        RequestRefused: the bytes are no canonical request of this version, or one whose dreams
            or answer have an impossible shape.
    """
    try:
        request: AskedOfClient = _REQUEST_DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestRefused(f"not a request: {error}") from None
    if request.version != VERSION or encode(request) != data:
        raise RequestRefused("not a canonical request of this version")
    if isinstance(request, DreamRequest | LabelRequest):
        _check_dreams(request)
    try:
        sections(request)
    except ConfigError as error:
        raise RequestRefused(f"no masked input can answer this: {error}") from None
    return request


def _check_dreams(request: Request) -> None:
    if min(request.shape) < 1 or len(request.dreams) != math.prod(request.shape):
        raise RequestRefused("the dreams do not fill the announced shape")
    if not 1 <= request.batches <= request.shape[0] or request.shape[0] % request.batches:
        raise RequestRefused(f"{request.shape[0]} dreams are not {request.batches} equal batches")
    student = request.student if isinstance(request, DreamRequest) else None
    if student and len(student.logits) != 4 * request.shape[0] * student.classes:
        raise RequestRefused("the student's logits do not fit the dreams")


def decode_model_request(data: bytes) -> ModelRequest | GradientRequest:
    """Decode a request for a model's update or gradient as a client does.

    Raises:
        RequestRefused: the bytes are no canonical request of this version, or name no tensors
            that can be sent.
    """
    try:
        request: ModelRequest | GradientRequest = _MODEL_DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestRefused(f"not a request: {error}") from None
    if request.version != VERSION or encode(request) != data:
        raise RequestRefused("not a canonical request of this version")
    if isinstance(request, ModelRequest):
        _check_tensors(request)
    try:
        sections(request)
    except ConfigError as error:
        raise RequestRefused(f"no masked input can answer this: {error}") from None
    return request


def _check_tensors(request: ModelRequest) -> None:
    if len(request.sizes) != len(request.scales) or min(request.sizes, default=0) < 1:
        raise RequestRefused("sizes and scales are not of the same tensors")
    if not all(0 < scale < math.inf for scale in request.scales):
        raise RequestRefused("a scale is not positive and finite")


def asked_labels(request: Asked) -> LabelRequest | None:
    """Return the label request that a request is, or that travels in it; None if it has none."""
    if isinstance(request, LabelRequest):
        return request
    if not isinstance(request, DreamRequest) or request.labels is None:
        return None
    asked = request.labels
    return LabelRequest(
        version=request.version,
        round=request.round,
        batch=request.batch,
        shape=request.shape,
        dreams=request.dreams,
        bits=asked.bits,
        clip=asked.clip,
        kind=asked.kind,
        temperature=asked.temperature,
        classes=asked.classes,
        weighting=asked.weighting,
        statistics_momentum=request.statistics_momentum,
        weight_cap=request.weight_cap,
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


def sections(request: Asked) -> tuple[Section, ...]:
    """Return the sections of the masked input that answers ``request``; both sides derive them.

    Raises ConfigError for a request that `decode_request` refuses.

    - dreams: ``gradient``, one value a pixel; with a student ``student``, one a logit of it.
    - labels: ``labels``, one value a class; weighted by confidence ``confidence``, one a dream;
      else weighted by examples ``weight``, one exact integer. Gradient steps have none: a weight
      released at every step is known from the first dropout on (D2).
    - dreams with labels: those of dreams, then those of labels.
    - models: ``update``, one value a number of the model; with a weight cap ``weight``.
    - gradients of models: ``gradient``, one integer with noise a parameter.
    - statistics: ``statistics``, for every class its pixels, brightness and count.
    - evaluations: ``accuracy``, two integers.
    """
    if isinstance(request, EvaluateRequest):
        return (Section(name="accuracy", length=2, maximum=request.SCALE, clip=1.0),)
    if isinstance(request, StatisticsRequest):
        return (_noisy_section("statistics", request.sum),)
    if isinstance(request, GradientRequest):
        return (_noisy_section("gradient", request.sum),)
    if isinstance(request, ModelRequest):
        return _model_sections(request)
    asked = asked_labels(request)
    of_labels = _label_sections(asked) if asked else ()
    return _dream_sections(request) + of_labels if isinstance(request, DreamRequest) else of_labels


def _dream_sections(request: DreamRequest) -> tuple[Section, ...]:
    maximum, length = _maximum(request.bits), len(request.dreams)
    gradient = Section(name="gradient", length=length, maximum=maximum, clip=request.clip)
    if (student := request.student) is None:
        return (gradient,)
    length, maximum = request.shape[0] * student.classes, _maximum(student.bits)
    return gradient, Section(name="student", length=length, maximum=maximum, clip=student.clip)


def _label_sections(request: LabelRequest) -> tuple[Section, ...]:
    if request.noisy is not None:
        return (_noisy_section("labels", request.noisy),)
    size, maximum, clip = request.shape[0], _maximum(request.bits), request.clip
    labels = Section(name="labels", length=size * request.classes, maximum=maximum, clip=clip)
    if request.weighting == "equal":
        cap = request.weight_cap
        return (
            (labels, Section(name="weight", length=1, maximum=cap, clip=1.0)) if cap else (labels,)
        )
    return (labels, Section(name="confidence", length=size, maximum=maximum, clip=0.5))


def _model_sections(request: ModelRequest) -> tuple[Section, ...]:
    length, cap = sum(request.sizes), request.weight_cap
    update = Section(name="update", length=length, maximum=_maximum(request.bits), clip=1.0)
    return (update, Section(name="weight", length=1, maximum=cap, clip=1.0)) if cap else (update,)


def _noisy_section(name: str, terms: NoisyTerms) -> Section:
    return Section(name=name, length=terms.length, maximum=terms.maximum, clip=1.0)


def _maximum(bits: int) -> int:
    """Return the largest code of so many bits; before the shift, a bound of what it may cost."""
    if not 1 <= bits <= MAX_BITS:
        raise ConfigError(f"{bits} bits are outside 1..{MAX_BITS}")
    return (1 << bits) - 1
