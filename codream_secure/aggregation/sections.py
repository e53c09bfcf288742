"""Which sections the masked input has that answers a request; both sides derive them from it."""

from codream_secure.aggregation.requests import (
    Asked,
    DreamRequest,
    EvaluateRequest,
    GradientRequest,
    LabelRequest,
    ModelRequest,
    NoisyTerms,
    StatisticsRequest,
    asked_labels,
)
from protocols.errors import ConfigError
from protocols.params import MAX_INPUT, Section

_MAX_BITS = (MAX_INPUT - 1).bit_length()


def sections(request: Asked) -> tuple[Section, ...]:
    """Return the sections of the masked input that answers ``request``, in order.

    - dreams: ``gradient``, one value for each pixel; with a student also ``student``, one value
      for each of its logits.
    - labels: ``labels``, one value for each dream and class. Weighted by confidence, also
      ``confidence``, one value for each dream. Neither they nor gradient steps have a ``weight``:
      a weight that is released at every step is known from the first dropout on (D2).
    - dreams with labels: the sections of dreams, then those of labels.
    - models: ``update``, one value for each number of the model; with a weight cap ``weight``.
    - gradients of models: ``gradient``, one noisy integer for each parameter.
    - statistics: ``statistics``, for every class its pixels, brightness and count.
    - evaluations: ``accuracy``, two integers.

    Raises:
        ConfigError: no section can have this size; `decode_request` refuses such a request.
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
    asked, size = request.labels, request.shape[0]
    if asked.noisy is not None:
        return (_noisy_section("labels", asked.noisy),)
    maximum, length = _maximum(asked.bits), size * asked.classes
    labels = Section(name="labels", length=length, maximum=maximum, clip=asked.clip)
    if asked.weighting == "confidence":
        return (labels, Section(name="confidence", length=size, maximum=maximum, clip=0.5))
    return (labels,)


def _model_sections(request: ModelRequest) -> tuple[Section, ...]:
    length, cap = sum(request.sizes), request.weight_cap
    update = Section(name="update", length=length, maximum=_maximum(request.bits), clip=1.0)
    return (update, _weight_section(cap)) if cap else (update,)


def _weight_section(cap: int) -> Section:
    return Section(name="weight", length=1, maximum=cap, clip=1.0)


def _noisy_section(name: str, terms: NoisyTerms) -> Section:
    return Section(name=name, length=terms.length, maximum=terms.maximum, clip=1.0)


def _maximum(bits: int) -> int:
    """Return the largest code of so many bits."""
    # Checked before the shift, which for 2**40 bits would take all memory.
    if not 1 <= bits <= _MAX_BITS:
        raise ConfigError(f"{bits} bits are outside 1..{_MAX_BITS}")
    return (1 << bits) - 1
