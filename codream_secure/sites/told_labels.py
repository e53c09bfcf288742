"""The summed labels that a server sends to learn from, and what a site checks in them.

A total itself cannot be checked: that needs assisting servers, and one dishonest client can move it
to any value anyway (D7, D30).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from codream_secure.aggregation.aggregator import FieldSum
from codream_secure.aggregation.decoding import decode_request
from codream_secure.aggregation.requests import (
    AskedOfClient,
    LabelRequest,
    SoftLabels,
    asked_labels,
    digest,
    encode,
)
from codream_secure.aggregation.sections import sections
from codream_secure.dreaming.labels import label_mean, soft_targets
from codream_secure.errors import RequestRefused, StepAborted
from codream_secure.sites.history import name_of
from codream_secure.sites.pending import check_signatures
from codream_secure.sites.wire import Entry, Labels, Learn, decode_with
from protocols.errors import SecAggError
from protocols.messages import decode_set
from protocols.params import BatchParams
from protocols.primitives.field import PrimeField
from protocols.primitives.packing import unpack

_DECODER = msgspec.msgpack.Decoder(SoftLabels)


class Told(NamedTuple):
    """Dreams, and the soft targets that follow from their summed labels."""

    request: LabelRequest
    targets: torch.Tensor


class LacksRequestsError(Exception):
    """The site does not have the requests with these names."""

    def __init__(self, names: tuple[bytes, ...]) -> None:
        super().__init__(f"{len(names)} requests are missing")
        self.names = names


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChecks:
    """What a site's checks need.

    Attributes:
        batch: gives roster, threshold, threat model and public keys.
        colluders: sites that may give any labels.
        finished: the record's finished steps since the last lesson, by number.
        kept: returns a request that the site was asked, by name; None: it was not.
        policy: raises RequestRefused for a request beyond the site's policy.
    """

    batch: BatchParams
    colluders: int
    finished: Mapping[int, Entry]
    kept: Callable[[bytes], bytes | None]
    policy: Callable[[AskedOfClient], None]

    def told(self, message: Learn) -> list[Told]:
        """Return what a message tells, in its order.

        Raises:
            RequestRefused: labels that no sum of the record can have given.
            SecAggError: signatures or bytes that are not valid.
            LacksRequestsError: requests that the site needs first.
        """
        sent = {name_of(request): request for request in message.requests}
        entries = [self._entry(labels) for labels in message.labels]
        names = [entry.request for entry in entries]
        requests = {name: self.kept(name) or sent.get(name) for name in names}
        if lacking := tuple(name for name, found in requests.items() if found is None):
            raise LacksRequestsError(lacking)
        return [
            self._targets(requests[entry.request] or b"", entry, labels.sums)
            for entry, labels in zip(entries, message.labels, strict=True)
        ]

    def _entry(self, labels: Labels) -> Entry:
        entry = self.finished.get(labels.step)
        if entry is None:
            raise RequestRefused("labels of a step that the record lists no sum of")
        if self.batch.malicious:
            check_signatures(self.batch, entry, labels.proof)
        return entry

    def _targets(self, broadcast: bytes, entry: Entry, sums: bytes) -> Told:
        asked = decode_request(broadcast)
        self.policy(asked)
        request = asked_labels(asked)
        try:
            found = decode_with(_DECODER, sums)
        except msgspec.DecodeError as error:
            raise RequestRefused(f"not summed labels: {error}") from None
        if request is None or digest(request.dreams) != found.dreams or encode(found) != sums:
            raise RequestRefused("summed labels of other dreams than the record's request")
        if found.count != len(decode_set(entry.survivors, self.batch.roster)):
            raise RequestRefused("summed labels count others than the survivors of their step")
        total = self._total(request, found)
        try:
            targets = soft_targets(label_mean(total, request), request)
        except StepAborted as error:
            raise RequestRefused(str(error)) from None
        if not bool(torch.isfinite(targets).all()):
            raise RequestRefused("summed labels that are no probabilities")
        return Told(request, targets)

    def _total(self, request: LabelRequest, found: SoftLabels) -> FieldSum:
        """Unpack summed labels; refuse values that no answers can add up to."""
        public = sections(request)
        if len(found.totals) != len(public):
            raise RequestRefused("summed labels of other sections than the request's")
        totals: dict[str, NDArray[np.uint32]] = {}
        for section, packed in zip(public, found.totals, strict=True):
            field = PrimeField.for_sum(self.batch.n, section.maximum)
            try:
                totals[section.name] = unpack(packed, field.bits, section.length)
            except SecAggError as error:
                raise RequestRefused(f"summed labels: {error}") from None
            if int(totals[section.name].max(initial=0)) > found.count * section.maximum:
                raise RequestRefused("summed labels are larger than answers can make them")
        total = FieldSum(totals, found.count, public)
        if request.labels.kind == "probabilities" and request.labels.noisy is None:
            self._check_rows(total, request)
        return total

    def _check_rows(self, total: FieldSum, request: LabelRequest) -> None:
        """Refuse labels whose rows cannot come from probabilities.

        A client sends p - 1/2 for each of C classes, times its confidence w: a row adds up to
        w (1 - C/2), with w = 1 where confidences do not count; or to 0 where its own numbers had to
        be repaired (SPEC 7.1). A colluder may send any row of numbers within 1/2.
        """
        classes, count = request.labels.classes, total.count
        quantizer = total.quantizer("labels")
        rows = quantizer.decode_sum(total.totals["labels"], count).reshape(-1, classes).sum(axis=1)
        weight = np.full(len(rows), float(count))
        slack = count * classes * quantizer.resolution + self.colluders * classes / 2
        if request.labels.weighting == "confidence":
            confidence = total.quantizer("confidence")
            weight = confidence.decode_sum(total.totals["confidence"], count) + count / 2
            slack += count * classes * confidence.resolution / 2 + self.colluders * classes / 2
        if (rows < weight * (1 - classes / 2) - slack).any() or (rows > slack).any():
            raise RequestRefused("summed labels that are no probabilities")
