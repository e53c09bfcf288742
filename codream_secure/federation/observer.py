"""The observer of a run on one machine: it looks into clients, and tells no participant.

Accuracies per client are facts about a simulation; no message of the protocol carries them. No
epsilon covers what is here, and no module of the server's side may import this one
(tests/codream_secure/test_layering.py).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from codream_secure.data.examples import Examples
from codream_secure.models.evaluate import accuracy, hits, personal_accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Accuracies at the end of a round, fractions in 0..1.

    Attributes:
        round: from 1.
        clients: test accuracy of each client.
        independent: test accuracy of each client's twin; empty without independent training.
        personal: test accuracy of each client, with classes weighted as in its own data.
        independent_personal: the same for the twins.
        server: test accuracy of the server's model; None: there is none.
        validation: accuracy on a client's own validation part, mean over clients; None: clients
            have no validation parts, as under DP.
    """

    round: int
    clients: tuple[float, ...]
    independent: tuple[float, ...]
    personal: tuple[float, ...]
    independent_personal: tuple[float, ...]
    server: float | None
    validation: float | None

    @property
    def clients_mean(self) -> float:
        """Mean test accuracy of the clients."""
        return float(np.mean(self.clients))

    @property
    def clients_std(self) -> float:
        """Population standard deviation over clients."""
        return float(np.std(self.clients))

    @property
    def independent_mean(self) -> float | None:
        """Mean test accuracy of independent training."""
        return float(np.mean(self.independent)) if self.independent else None

    @property
    def personal_mean(self) -> float:
        """Mean personalised accuracy of the clients."""
        return float(np.mean(self.personal))

    @property
    def independent_personal_mean(self) -> float | None:
        """Mean personalised accuracy of independent training."""
        return float(np.mean(self.independent_personal)) if self.independent_personal else None


class Observer:
    """Measures models on the test part and on the clients' validation parts.

    Args:
        test: the dataset's test part; nothing else uses it.
        validation: validation parts by client id; empty under DP.
        label_counts: examples of each class that each client has, int64, shape (clients,
            classes). Only the simulation, which dealt them, may know.

    Attributes:
        history: all measurements, one per round.
        test_digest: SHA-256 of the test part, in hex; runs that differ in it are not comparable.
    """

    def __init__(
        self,
        test: Examples,
        validation: Mapping[int, Examples],
        label_counts: NDArray[np.int64],
    ) -> None:
        self.label_counts = label_counts
        self.test_digest = hashlib.sha256(
            test.x.cpu().numpy().tobytes() + test.y.cpu().numpy().tobytes()
        ).hexdigest()
        self._test = test
        self._validation = validation
        self.history: list[Measurement] = []

    def measure(
        self,
        round_number: int,
        clients: Mapping[int, nn.Module],
        independent: Mapping[int, nn.Module],
        server: nn.Module | None,
    ) -> Measurement:
        """Measure all models at the end of a round and append the result to ``history``.

        A model that several clients hold is measured once.

        Args:
            round_number: from 1.
            clients: the clients' models, in the order of ``label_counts``.
            independent: the twins' models in the same order; may be empty.
            server: the server's model; None: there is none.
        """
        on_own = [accuracy(clients[c], examples) for c, examples in self._validation.items()]
        models = [*clients.values(), *([] if server is None else [server])]
        by_model = {model: hits(model, self._test) for model in dict.fromkeys(models)}
        found = [by_model[model] for model in clients.values()]
        alone = [hits(model, self._test) for model in independent.values()]
        measurement = Measurement(
            round=round_number,
            clients=tuple(float(f.mean()) for f in found),
            independent=tuple(float(f.mean()) for f in alone),
            personal=self._personal(found),
            independent_personal=self._personal(alone),
            server=None if server is None else float(by_model[server].mean()),
            validation=float(np.mean(on_own)) if on_own else None,
        )
        self.history.append(measurement)
        return measurement

    def _personal(self, found: Sequence[NDArray[np.bool_]]) -> tuple[float, ...]:
        labels = self._test.y.cpu().numpy()
        pairs = zip(found, self.label_counts, strict=False)
        return tuple(personal_accuracy(own, labels, counts) for own, counts in pairs)

    def reported(self) -> Measurement | None:
        """Return the measurement that a report quotes; None before the first round.

        It is the last round whose validation accuracy is within one standard error of the best
        (the one-standard-error rule, Breiman et al., 1984): validation parts of a few examples
        cannot tell rounds apart more finely. Under DP, where there are no validation parts, it is
        the last round. The test accuracy plays no part.
        """
        scores = [m.validation for m in self.history if m.validation is not None]
        if not scores:
            return self.history[-1] if self.history else None
        best = max(scores)
        examples = sum(len(part.y) for part in self._validation.values())
        enough = best - math.sqrt(best * (1 - best) / examples)
        return [m for m in self.history if m.validation is not None and m.validation >= enough][-1]

    def state(self) -> list[dict[str, Any]]:
        """Return the history in plain values, for a checkpoint."""
        return [asdict(measurement) for measurement in self.history]

    def restore(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Restore the history that `state` returned.

        Raises:
            ValueError: a row is no measurement, or rounds are missing.
        """
        history = msgspec.convert(rows, list[Measurement])
        if [m.round for m in history] != list(range(1, len(history) + 1)):
            raise ValueError("rounds are missing in the history")
        self.history = history
