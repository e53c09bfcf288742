"""Models on their way between clients and server: encoded, counted, and masked if asked for.

A round is one request to each client, one update from each client, and the new model to each
client. The first model follows from a public seed, so it is not sent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codream_secure.aggregation.aggregator import Aggregator, AnsweringClient, FieldSum, Meters
from codream_secure.aggregation.decoding import decode_model_request
from codream_secure.aggregation.model_updates import (
    FULL,
    decoded_update,
    first_scales,
    model_digest,
    packed,
    scaled_update,
    sent_to,
    unpacked,
)
from codream_secure.aggregation.requests import (
    VERSION,
    GradientRequest,
    ModelRequest,
    digest,
    encode,
)
from codream_secure.aggregation.settings import AggregationSettings
from codream_secure.baselines.clear import ModelUpdate
from codream_secure.config.methods import Method
from codream_secure.errors import RequestRefused, StepAborted
from codream_secure.models.tensors import Tensors, float_bytes, zeros
from codream_secure.privacy.noisy_descent import NAME
from codream_secure.privacy.noisy_sum import NoisySum, noisy_terms
from codream_secure.privacy.sum_plan import OwnSums
from codream_secure.runtime.parallel import in_parallel
from codream_secure.runtime.seeds import derive_bytes
from protocols.phases import Phase
from protocols.quantization import Quantizer

# A client's work in one round: takes the client's id, returns its update.
Compute = Callable[[int], Tensors]


@dataclass(slots=True)
class ModelExchange:
    """Moves models between clients and server, and counts the bytes.

    Args:
        method: whether updates are masked, and how many bits a number has.
        settings: roster, threshold, dropouts.
        meters: receive bytes and seconds.
        seed: of the run; keys the rounding of quantized numbers.
        weights: examples by client id, which weight the mean; None: all clients count alike.

    Attributes:
        aggregator: sums quantized updates; whoever makes it calls `answers`. None: updates travel
            as float32, which masks cannot hide.
        aborted: steps in which too few clients stayed.
        included: clients in the last mean.
    """

    method: Method
    settings: AggregationSettings
    meters: Meters
    seed: int
    weights: Mapping[int, int] | None
    aggregator: Aggregator | None = field(init=False, default=None)
    aborted: int = field(init=False, default=0)
    included: int = field(init=False, default=0)
    _fixed: Mapping[str, float] | None = field(init=False, default=None)
    _delivered: bytes = field(init=False, default=b"")
    _scales: dict[str, float] = field(init=False, default_factory=dict)
    _compute: Compute | None = field(init=False, default=None)
    _noisy: tuple[Mapping[int, OwnSums], Callable[[int], NDArray[np.int64]]] | None = field(
        init=False, default=None
    )

    def answers(self) -> dict[int, AnsweringClient]:
        """Return the clients as the aggregator calls them, by client id."""
        return {c: _ExchangeClient(self, c) for c in self.settings.roster}

    @property
    def quantized(self) -> bool:
        """Whether updates travel as integers, which can be summed under masks."""
        return self.method.up != FULL

    def mean_update(
        self,
        number: int,
        state: Mapping[str, Tensor],
        compute: Compute,
        scales: Mapping[str, float] | None = None,
    ) -> Tensors:
        """Return the mean of the clients' updates; zeros if the step was aborted.

        Args:
            number: of the round.
            state: the tensors that clients start from; an update has the same names and shapes.
            compute: a client's work.
            scales: clips of quantized tensors by name; None: they follow earlier means.
        """
        if self.aggregator is None:
            updates = self.updates(number, state, compute)
            return self.mean(updates) if updates else zeros(state)
        self._compute, self._fixed = compute, scales
        request = self._request(number, state)
        try:
            answer = self.aggregator.sum(request)
            self.included = answer.count
            mean, scales = decoded_update(answer, request, state)
            self._scales.update(scales)
            return mean
        except StepAborted:
            self.aborted += 1
            return zeros(state)

    def updates(
        self, number: int, state: Mapping[str, Tensor], compute: Compute
    ) -> dict[int, Tensors]:
        """Return each client's update, as the server of a method without masks receives it.

        Args:
            number: of the round.
            state: the tensors that clients start from.
            compute: a client's work.

        Returns:
            Updates by client id, without the clients that dropped out.
        """
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
            packed = tuple(map(float_bytes, update.values()))
            size = len(msgspec.msgpack.encode(ModelUpdate(VERSION, number, packed, weight)))
            content = sum(map(len, packed))
            ledger.record(Phase.MASKED_INPUT, "up", size, client=client, payload=content)
        self.included = len(found)
        return found

    def mean(self, updates: Mapping[int, Tensors]) -> Tensors:
        """Return the mean of updates as the server computes it, weighted if clients are."""
        weights = {c: 1 if self.weights is None else self.weights[c] for c in updates}
        total = sum(weights.values())
        names = next(iter(updates.values())).keys()
        return {
            name: torch.stack([u[name] * (weights[c] / total) for c, u in updates.items()]).sum(0)
            for name in names
        }

    def deliver(self, number: int, state: Tensors) -> Tensors:
        """Send the new model to all clients.

        Args:
            number: of the round.
            state: the new model.

        Returns:
            The model as clients receive it, which is rounded if it is quantized on the way.
        """
        sent = packed(number, self.method.down, self.seed, state)
        self._delivered = digest(sent_to(self.settings.roster, sent, self.meters.ledger))
        return unpacked(sent, state)

    def _request(self, number: int, state: Mapping[str, Tensor]) -> ModelRequest:
        model = self._model_digest(state)
        quantized = self.aggregator is not None
        if quantized and not self._scales:
            self._scales = first_scales(state)
        scales = self._scales if self._fixed is None else self._fixed
        return ModelRequest(
            version=VERSION,
            round=number,
            model=model,
            sizes=tuple(value.numel() for value in state.values()) if quantized else (),
            scales=tuple(scales.values()) if quantized else (),
            bits=self.method.up,
            weight_cap=self._cap if quantized else 0,
        )

    def _model_digest(self, state: Mapping[str, Tensor]) -> bytes:
        """Return the SHA-256 digest of the model that clients start from."""
        if not self._delivered:
            self._delivered = model_digest(state)
        return self._delivered

    @property
    def _cap(self) -> int:
        return 0 if self.weights is None else max(self.weights.values())

    def noisy_sum(
        self,
        position: tuple[int, int],
        state: Mapping[str, Tensor],
        terms: NoisySum,
        sides: Mapping[int, OwnSums],
        compute: Callable[[int], NDArray[np.int64]],
    ) -> FieldSum:
        """Return the sum of the clients' integer vectors, each with its share of noise.

        Args:
            position: the round, and the number of the sum in the run, from 1.
            state: the tensors that clients start from.
            terms: of the sum.
            sides: each client's noise and budget.
            compute: returns a client's vector, int64.

        Raises:
            StepAborted: too few clients stayed; the step stays charged.
        """
        if self.aggregator is None:
            raise ValueError("noisy sums need masks")
        self._noisy = sides, compute
        asked = GradientRequest(VERSION, *position, self._model_digest(state), noisy_terms(terms))
        try:
            answer = self.aggregator.sum(asked)
        except StepAborted:
            self.aborted += 1
            raise
        for client in self.aggregator.verified:
            sides[client].verified(answer.count)
        return answer

    def answer(self, client: int, broadcast: bytes, step: int) -> dict[str, NDArray[np.uint32]]:
        """Compute one client's answer to a request; it leaves the client masked.

        Args:
            client: id.
            broadcast: the encoded request.
            step: of the protocol; it selects the rounding stream.

        Returns:
            Codes by section, uint32.

        Raises:
            RequestRefused: the request is malformed, or asks for what the method does not send.
            ValueError: no round has begun.
        """
        request = decode_model_request(broadcast)
        if isinstance(request, GradientRequest):
            return {"gradient": self._noisy_answer(client, request, step, digest(broadcast))}
        if self._compute is None:
            raise ValueError("no round has begun")
        update = self._compute(client)
        values = scaled_update(update, request)
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
        sides[client].take(NAME, request.sum)
        return sides[client].codes(compute(client), step, asked)

    @staticmethod
    def _section(request: ModelRequest) -> Quantizer:
        return Quantizer((1 << request.bits) - 1, 1.0)


@dataclass(frozen=True, slots=True)
class _ExchangeClient:
    """One client as the aggregator calls it."""

    exchange: ModelExchange
    client: int

    def __call__(self, broadcast: bytes, step: int) -> dict[str, NDArray[np.uint32]]:
        return self.exchange.answer(self.client, broadcast, step)
