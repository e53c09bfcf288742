"""A run as its folder tells it: by its summary, or by its rounds while there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Self

import msgspec

from codream_secure.config.methods import parse_method
from codream_secure.errors import UserError
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.runs.formats import Row, Summary

# Methods in which nothing is sent.
ALONE = "independent"
TOGETHER = "centralized"


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of config.toml that stand for a summary until there is one.

    None is unknown: config.toml may leave out what has a default.
    """

    method: str | None = None
    dataset: str | None = None
    partition: str | None = None
    clients: int | None = None
    rounds: int | None = None
    seed: int = 0
    secure: bool | None = None
    collaboration: bool | None = None
    dp_eps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFigures:
    """What a page shows of one round; costs are those since the beginning.

    Attributes:
        accuracy: of the one model for all where the method has one, else the clients' mean, 0 to 1.
        spread: standard deviation over clients.
        independent: mean accuracy of the same clients training alone.
        student: of the server's student; None where there is one model for all.
        bytes_up, bytes_down: of one client.
    """

    round: int
    accuracy: float | None
    spread: float | None
    independent: float | None
    student: float | None
    bytes_up: float
    bytes_down: float
    iterations: float
    seconds: float
    epsilon: float | None

    @classmethod
    def of(cls, row: Row, *, one_model: bool) -> Self:
        """Return the figures of a row of metrics.jsonl."""
        mean = fmean(row.clients) if row.clients else None
        return cls(
            round=row.round,
            accuracy=row.server if one_model and row.server is not None else mean,
            spread=pstdev(row.clients) if row.clients else None,
            independent=fmean(row.independent) if row.independent else None,
            student=None if one_model else row.server,
            bytes_up=row.bytes_up,
            bytes_down=row.bytes_down,
            iterations=row.iterations,
            seconds=row.seconds,
            epsilon=row.epsilon,
        )

    @property
    def bytes_both(self) -> float:
        """Bytes up and down together."""
        return self.bytes_up + self.bytes_down


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run that was read from its folder.

    Attributes:
        folder: of the run.
        method: its name.
        config_text: config.toml as it stands.
        options: all settings in it by name.
        config: those that stand for a missing summary.
        summary: None if the run was cut off before it wrote one.
        rounds_done: figures of every finished round.
        cell: whether the run belongs to a comparison, whose budget says how many rounds it has.
        at_end: whether to show the last round, which the costs belong to, and not the round that
            the run reports.
    """

    folder: Path
    method: str
    config_text: str
    options: Mapping[str, Any]
    config: ConfigFile
    summary: Summary | None
    rounds_done: tuple[RoundFigures, ...]
    cell: bool = False
    at_end: bool = False

    @property
    def _told(self) -> Summary | ConfigFile:
        return self.summary or self.config

    @property
    def _last(self) -> RoundFigures | None:
        return self.rounds_done[-1] if self.rounds_done else None

    # -- what was run ----------------------------------------------------------------------------

    @property
    def dataset(self) -> str | None:
        """Name of the dataset."""
        return self._told.dataset

    @property
    def test_digest(self) -> str | None:
        """SHA-256 of the test part."""
        return self.summary.test_digest if self.summary else None

    @property
    def partition(self) -> str | None:
        """How the data was dealt."""
        return self._told.partition

    @property
    def clients(self) -> int | None:
        """How many clients there are."""
        return self._told.clients

    @property
    def seed(self) -> int:
        """The seed; 0 where none was set."""
        return self._told.seed

    @property
    def one_model(self) -> bool:
        """Whether the method yields one model for all, which is then what counts."""
        return has_one_model(self.method)

    @property
    def secure(self) -> bool | None:
        """Whether inputs were masked."""
        return self.summary.protocol.secure if self.summary else self.config.secure

    @property
    def sends(self) -> bool:
        """Whether clients send anything at all."""
        if self.method in (ALONE, TOGETHER):
            return False
        if self.summary:
            return self.summary.dreaming is None or self.summary.dreaming.collaboration
        return self.config.collaboration is not False

    @property
    def rounds(self) -> int | None:
        """Rounds that were asked for; None where a budget decides."""
        return None if self.cell else self._told.rounds

    @property
    def rounds_finished(self) -> int:
        """Rounds that were finished."""
        return self.summary.rounds_finished if self.summary else len(self.rounds_done)

    # -- accuracy --------------------------------------------------------------------------------

    @property
    def accuracy(self) -> float | None:
        """Test accuracy of the one model for all if there is one, else the clients' mean."""
        one = self._reported("accuracy", "server") if self.one_model else None
        return self._reported("accuracy", "clients_mean") if one is None else one

    @property
    def spread(self) -> float | None:
        """Standard deviation of the accuracy over clients; None of one model for all."""
        return None if self.one_model else self._reported("spread", "clients_std")

    @property
    def independent(self) -> float | None:
        """Mean test accuracy of the same clients training alone."""
        return self._reported("independent", "independent_mean")

    @property
    def student(self) -> float | None:
        """Test accuracy of the server's student."""
        return None if self.one_model else self._reported("student", "server")

    def _reported(self, of_round: str, of_summary: str) -> float | None:
        """Return an accuracy of the summary, or the last round's where that is asked for."""
        found = None
        if self.summary and not (self.at_end and self.rounds_done):
            found = getattr(self.summary.accuracy, of_summary)
        return getattr(self._last, of_round, None) if found is None else found

    # -- costs -----------------------------------------------------------------------------------

    @property
    def bytes_up(self) -> float | None:
        """Bytes that one client sent."""
        found = self.summary.bytes.per_client_up if self.summary else None
        return self._cost("bytes_up", found)

    @property
    def bytes_down(self) -> float | None:
        """Bytes that one client received."""
        return self._cost(
            "bytes_down", self.summary.bytes.per_client_down if self.summary else None
        )

    @property
    def bytes_both(self) -> float | None:
        """Bytes up and down together."""
        up, down = self.bytes_up, self.bytes_down
        return None if up is None or down is None else up + down

    @property
    def fedavg_bytes(self) -> int | None:
        """What FedAvg of the same models would move over the same rounds, up and down."""
        if not self.summary:
            return None
        sizes = self.summary.bytes
        up, down = sizes.fedavg_per_client_up, sizes.fedavg_per_client_down
        return None if up is None or down is None else up + down

    @property
    def phases(self) -> dict[str, tuple[float, float]]:
        """Bytes up and down by phase, without phases that have none."""
        table = self.summary.bytes.by_phase if self.summary else {}
        return {name: (by.up, by.down) for name, by in table.items() if by.both}

    @property
    def seconds(self) -> float | None:
        """What the method itself took, on one machine."""
        return self._cost("seconds", self.summary.seconds.busy if self.summary else None)

    @property
    def iterations(self) -> float | None:
        """Work of one client: forward and backward passes over a minibatch."""
        return self._cost("iterations", self.summary.iterations if self.summary else None)

    def _cost(self, of_round: str, of_summary: float | None) -> float | None:
        if of_summary is not None:
            return of_summary
        found: float | None = getattr(self._last, of_round, None)
        nothing = 0.0 if of_round.startswith("bytes") and not self.sends else None
        return nothing if found is None else found

    # -- privacy ---------------------------------------------------------------------------------

    @property
    def _privacy(self) -> Guarantee | None:
        return self.summary.privacy if self.summary else None

    @property
    def private(self) -> bool | None:
        """Whether the run is differentially private; None if that is unknown."""
        if self.summary:
            return self.summary.privacy is not None
        return self.config.dp_eps is not None if self.options else None

    @property
    def epsilon(self) -> float | None:
        """The epsilon of what was run."""
        if self._privacy:
            return self._privacy.epsilon
        return self._last.epsilon if self._last else None

    @property
    def delta(self) -> float | None:
        """The delta that goes with it."""
        return self._privacy.delta if self._privacy else None

    @property
    def unit(self) -> str:
        """Whom epsilon protects, in words."""
        privacy = self._privacy
        return "one client" if privacy and privacy.unit == "client" else "one training example"

    @property
    def colluding(self) -> Mapping[int, float | None]:
        """Epsilon by how many clients tell the server their noise; empty where none is shared."""
        return self._privacy.colluding if self._privacy else {}

    @property
    def seeded_noise(self) -> bool:
        """Whether whoever knows the seed can remove the noise."""
        privacy = self._privacy
        return privacy is not None and privacy.noise_source == "seeded"


def has_one_model(method: str) -> bool:
    """Tell whether a method yields one model for all; False for an unknown method."""
    try:
        return parse_method(method).one_model
    except UserError:
        return False
