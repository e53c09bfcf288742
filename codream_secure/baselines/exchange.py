"""Models between clients and the server: really encoded, counted, and summed if they may be.

A round is one request down, one update up and the new model down. The first model follows from a
public seed, so it is not sent.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codream_secure.aggregation.aggregator import AVERAGING, Aggregator, FieldSum, Meters
from codream_secure.aggregation.decoding import decode_model_request
from codream_secure.aggregation.plain import PlainAggregator
from codream_secure.aggregation.requests import (
    VERSION,
    GradientRequest,
    ModelRequest,
    ModelState,
    digest,
    encode,
)
from codream_secure.aggregation.secure import SecureAggregator
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.baselines.methods import Method
from codream_secure.errors import RequestRefused, StepAborted
from codream_secure.privacy.noisy_sum import noisy_terms
from codream_secure.privacy.release_plan import NoisyReleases
from codream_secure.runtime.parallel import in_parallel
from codream_secure.runtime.seeds import derive_bytes
from protocols.phases import Phase
from protocols.quantization import CLIP_MIN, Quantizer, next_clip

Tensors = dict[str, Tensor]
# What a client does with its local data in a round: its id goes in, its update comes out.
Compute = Callable[[int], Tensors]

_FULL = 32
# Updates have longer tails than gradients of dreams, and usually more bits.
_DEVIATIONS = 6.0
_COUNTERS = "num_batches_tracked"


def tensors_of(model: nn.Module) -> Tensors:
    """Return copies of a model's numbers; BatchNorm's counters, which nobody uses, stay behind."""
    state = model.state_dict().items()
    return {n: v.detach().float().clone() for n, v in state if not n.endswith(_COUNTERS)}


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put numbers into a model."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not name.endswith(_COUNTERS):
                value.copy_(tensors[name])


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensors:
    """Return after - before, tensor by tensor."""
    return {name: after[name] - before[name] for name in before}


def add(base: Mapping[str, Tensor], update: Mapping[str, Tensor], share: float = 1.0) -> Tensors:
    """Return base + share * update; what must not be negative (variances) is kept at zero."""
    moved = {name: base[name] + share * update[name] for name in base}
    return {n: v.clamp_min(0) if n.endswith("running_var") else v for n, v in moved.items()}


class ModelUpdate(msgspec.Struct, frozen=True, array_like=True, tag="model_update"):
    """What a client sends in the clear at full precision: float32 tensors, and its weight."""

    version: int
    round: int
    tensors: tuple[bytes, ...]
    weight: int


@dataclass(slots=True)
class ModelExchange:
    """Everything that moves models.

    Args:
        method: whether masks are on, and at what precision numbers travel.
        settings: roster, threshold, dropouts.
        meters: bytes and seconds.
        seed: of the run; keys the rounding of quantized numbers.
        session: 32 public bytes, fresh for every run.
        weights: examples by client where they count by these, else None.

    Attributes:
        aggregator: None where nothing is quantized, and so nothing can be masked.
    """

    method: Method
    settings: AggregationSettings
    meters: Meters
    seed: int
    session: bytes
    weights: Mapping[int, int] | None
    aggregator: Aggregator | None = field(init=False, default=None)
    aborted: int = field(init=False, default=0)
    _delivered: bytes = field(init=False, default=b"")
    _scales: dict[str, float] = field(init=False, default_factory=dict)
    _compute: Compute | None = field(init=False, default=None)
    _noisy: tuple[Mapping[int, NoisyReleases], Callable[[int], NDArray[np.int64]]] | None = field(
        init=False, default=None
    )

    def __post_init__(self) -> None:
        answers = {c: _Answer(self, c) for c in self.settings.roster}
        if self.method.secure:
            self.aggregator = SecureAggregator(
                answers, self.settings, self.meters, session=self.session, kinds=AVERAGING
            )
        elif self.method.up != _FULL:
            self.aggregator = PlainAggregator(answers, self.settings, self.meters)

    def mean_update(self, number: int, state: Mapping[str, Tensor], compute: Compute) -> Tensors:
        """Return the mean of the clients' updates; zeros if the step was aborted.

        Args:
            number: of the round.
            state: what clients start from, and what an update has the shape of.
            compute: a client's work, on its side.
        """
        if self.aggregator is None:
            updates = self.updates(number, state, compute)
            return self._mean(updates) if updates else _zeros(state)
        self._compute = compute
        request = self._request(number, state)
        try:
            answer = self.aggregator.sum(request)
            return self._decoded(answer, request, state)
        except StepAborted:
            self.aborted += 1
            return _zeros(state)

    def updates(
        self, number: int, state: Mapping[str, Tensor], compute: Compute
    ) -> dict[int, Tensors]:
        """Return every client's update as the server of a method without masks sees it."""
        request = encode(self._request(number, state))
        drops = self.settings.step_drops(number - 1)
        ledger = self.meters.ledger
        for client in self.settings.roster:
            ledger.record("broadcast", "down", len(request), client=client)
        there = [c for c in self.settings.roster if not drops.silent(c, Phase.MASKED_INPUT)]
        with self.meters.stopwatch.measure("answering"):
            found = dict(zip(there, in_parallel(compute, there), strict=True))
        for client, update in found.items():
            weight = 1 if self.weights is None else self.weights[client]
            packed = tuple(_floats(update[name]) for name in state)
            size = len(msgspec.msgpack.encode(ModelUpdate(VERSION, number, packed, weight)))
            content = sum(map(len, packed))
            ledger.record(Phase.MASKED_INPUT, "up", size, client=client, payload=content)
        return found

    def _mean(self, updates: Mapping[int, Tensors]) -> Tensors:
        weights = {c: 1 if self.weights is None else self.weights[c] for c in updates}
        total = sum(weights.values())
        names = next(iter(updates.values())).keys()
        return {
            name: torch.stack([u[name] * (weights[c] / total) for c, u in updates.items()]).sum(0)
            for name in names
        }

    def deliver(self, number: int, state: Tensors) -> Tensors:
        """Send the new model down; returns what clients then have."""
        tensors, ranges = [], []
        received = {}
        for index, (name, value) in enumerate(state.items()):
            if self.method.down == _FULL:
                tensors.append(_floats(value))
                received[name] = value
                continue
            codes, low, step = _to_codes(value, derive_bytes(self.seed, "down", number, index))
            tensors.append(codes.tobytes())
            ranges.append((low, step))
            decoded = torch.from_numpy((low + step * codes).astype(np.float32))
            received[name] = decoded.reshape(value.shape).to(value.device)
        message = encode(
            ModelState(VERSION, number, self.method.down, tuple(tensors), tuple(ranges))
        )
        content = sum(map(len, tensors))
        for client in self.settings.roster:
            self.meters.ledger.record(
                "broadcast", "down", len(message), client=client, payload=content
            )
        self._delivered = digest(message)
        return received

    def _request(self, number: int, state: Mapping[str, Tensor]) -> ModelRequest:
        model = self._model_digest(state)
        quantized = self.aggregator is not None
        if quantized and not self._scales:
            self._scales = {name: _first_scale(value) for name, value in state.items()}
        return ModelRequest(
            version=VERSION,
            round=number,
            model=model,
            sizes=tuple(value.numel() for value in state.values()) if quantized else (),
            scales=tuple(self._scales.values()),
            bits=self.method.up,
            weight_cap=self._cap if quantized else 0,
        )

    def _model_digest(self, state: Mapping[str, Tensor]) -> bytes:
        """Return the digest of the model that clients start from."""
        if not self._delivered:
            first = tuple(_floats(value) for value in state.values())
            self._delivered = digest(encode(ModelState(VERSION, 0, _FULL, first)))
        return self._delivered

    @property
    def _cap(self) -> int:
        return 0 if self.weights is None else max(self.weights.values())

    def noisy_sum(
        self,
        position: tuple[int, int],
        state: Mapping[str, Tensor],
        sides: Mapping[int, NoisyReleases],
        compute: Callable[[int], NDArray[np.int64]],
    ) -> FieldSum:
        """Return the sum of the clients' integers, each with its share of noise.

        Args:
            position: round, and number of the sum in the run from 1.
            state: what clients start from.
            sides: the clients' noise and budgets.
            compute: a client's integers, on its side.

        Raises:
            StepAborted: too few stayed; it is charged all the same.
        """
        if self.aggregator is None:
            raise ValueError("noisy sums need masks")
        self._noisy = sides, compute
        terms = noisy_terms(next(iter(sides.values())).terms)
        request = GradientRequest(VERSION, *position, self._model_digest(state), terms)
        try:
            return self.aggregator.sum(request)
        except StepAborted:
            self.aborted += 1
            raise

    def answer(self, client: int, broadcast: bytes, step: int) -> dict[str, NDArray[np.uint32]]:
        """Return one client's quantized update; it stays with the client until it is masked."""
        request = decode_model_request(broadcast)
        if isinstance(request, GradientRequest):
            return {"gradient": self._noisy_answer(client, request, step, digest(broadcast))}
        if self._compute is None:
            raise ValueError("no round has begun")
        update = self._compute(client)
        pairs = zip(update.values(), request.scales, strict=True)
        parts = [(value / scale).flatten().cpu().numpy() for value, scale in pairs]
        values = np.concatenate(parts).astype(np.float64)
        section = self._section(request)
        weight = 0
        if request.weight_cap and self.weights is not None:
            weight = min(self.weights[client], request.weight_cap)
            values *= weight / request.weight_cap
        key = derive_bytes(self.seed, "rounding", client)
        codes = {"update": section.encode(values, seed=key, step=step, section="update")}
        if request.weight_cap:
            codes["weight"] = np.array([weight], np.uint32)
        return codes

    def _noisy_answer(
        self, client: int, request: GradientRequest, step: int, asked: bytes
    ) -> NDArray[np.uint32]:
        if self._noisy is None:
            raise RequestRefused("no noisy sums in this method")
        sides, compute = self._noisy
        sides[client].take(request.sum)
        return sides[client].codes(compute(client), step, asked)

    @staticmethod
    def _section(request: ModelRequest) -> Quantizer:
        return Quantizer((1 << request.bits) - 1, 1.0)

    def _decoded(
        self, answer: FieldSum, request: ModelRequest, state: Mapping[str, Tensor]
    ) -> Tensors:
        flat, share = answer.mean("update"), 1.0
        if request.weight_cap:
            weight = int(answer.totals["weight"][0])
            if not weight:
                raise StepAborted("the clients' weights add up to nothing")
            share = answer.count * request.weight_cap / weight
        mean, begin = {}, 0
        for (name, value), scale in zip(state.items(), request.scales, strict=True):
            part = flat[begin : begin + value.numel()]
            begin += value.numel()
            quantizer = Quantizer((1 << request.bits) - 1, scale)
            self._scales[name] = next_clip(
                quantizer, part * scale, answer.count, deviations=_DEVIATIONS
            )
            decoded = torch.from_numpy((part * (scale * share)).astype(np.float32))
            mean[name] = decoded.reshape(value.shape).to(value.device)
        return mean


@dataclass(frozen=True, slots=True)
class _Answer:
    """One client behind the aggregator's door."""

    exchange: ModelExchange
    client: int

    def __call__(self, broadcast: bytes, step: int) -> dict[str, NDArray[np.uint32]]:
        return self.exchange.answer(self.client, broadcast, step)


def send(
    ledger_meters: Meters, tensors: Iterable[Tensor], *, client: int, down: bool, number: int
) -> None:
    """Count one model in float32, to or from one client."""
    packed = tuple(_floats(value) for value in tensors)
    size = len(encode(ModelState(VERSION, number, _FULL, packed)))
    phase = "broadcast" if down else Phase.MASKED_INPUT.value
    ledger_meters.ledger.record(
        phase,
        "down" if down else "up",
        size,
        client=client,
        payload=sum(map(len, packed)),
    )


def _zeros(state: Mapping[str, Tensor]) -> Tensors:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def _floats(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().numpy().astype("<f4").tobytes()


def _first_scale(value: Tensor) -> float:
    """Return a public guess of how far a tensor moves at most: its spread four times, or 1."""
    spread = float(value.square().mean().sqrt())
    return max(4 * spread if spread else 1.0, CLIP_MIN)


def _to_codes(value: Tensor, key: bytes) -> tuple[NDArray[np.uint8], float, float]:
    """Round to 256 levels between least and largest value, at random so that the mean is kept."""
    flat = value.detach().cpu().flatten().double().numpy()
    low, high = float(flat.min()), float(flat.max())
    step = (high - low) / 255 or 1.0
    draw = np.random.Generator(np.random.Philox(int.from_bytes(key[:16], "big")))
    codes = np.floor((flat - low) / step + draw.random(flat.size))
    return np.clip(codes, 0, 255).astype(np.uint8), low, step
