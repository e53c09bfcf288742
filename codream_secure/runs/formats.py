"""The contents of a run folder's files: a `Summary`, and a `Row` a round.

Each struct is written and read as it stands: a missing, unknown or wrongly typed field is an error.
Nothing here imports PyTorch, so that run folders can be listed quickly.
"""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from codream_secure.privacy.guarantee import Guarantee

# 1 was the format of the first release: a flat summary without `format`.
FORMAT = 2
CONFIG, METRICS, SUMMARY, COMPARISON = (
    "config.toml",
    "metrics.jsonl",
    "summary.json",
    "compare.json",
)

_T = TypeVar("_T")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a file. Unknown and missing fields are refused."""


class Traffic(Record, frozen=True):
    """Bytes in both directions: ``up`` to the server, ``down`` to the client."""

    up: int
    down: int

    @property
    def both(self) -> int:
        """Bytes up and down together."""
        return self.up + self.down


class Accuracy(Record, frozen=True):
    """Test accuracies of the reported round, 0 to 1; all are None if no round was finished.

    The observer measured them; no epsilon covers them. ``personal`` ones are measured on each
    client's own mix of classes.
    """

    independent_mean: float | None
    clients_mean: float | None
    clients_std: float | None
    server: float | None
    independent_personal_mean: float | None
    personal_mean: float | None


class Dreaming(Record, frozen=True):
    """Settings and events of a method that dreams.

    Attributes:
        unlabelled_rounds: rounds that too many dropouts left without a labelled batch of dreams.
        rolled_back: dream steps that were taken back because dreams were not finite.
    """

    collaboration: bool
    dreams: int
    dream_batches: int
    parallel_batches: bool
    dream_steps: int
    label_last_step: bool
    local_steps: int
    adaptive: str
    bits: int
    label_weighting: str
    label_bits: int
    unlabelled_rounds: int
    rolled_back: int


class Graph(Record, frozen=True):
    """Who masked with whom; beyond ``name`` and ``why`` None on the complete graph.

    Attributes:
        name: complete, ring or chosen.
        why: why `auto` took it; empty where the user named it.
        neighbours: k, of every client (chosen: whom each chose).
        needed: how many of their shares rebuild a seed.
        corrupt, silent: numbers of clients that these were made for.
        unsafe_log2: log2 of a bound on the probability, for one key exchange, that privacy fails;
            None: it cannot.
    """

    name: str
    why: str
    neighbours: int | None
    needed: int | None
    corrupt: int | None
    silent: int | None
    unsafe_log2: float | None


class Protocol(Record, frozen=True):
    """Settings and cost of the sums; where a baseline sums nothing by the protocol, they are None.

    Attributes:
        secure: whether clients' inputs were masked.
        threshold: clients that must stay in a sum.
        colluders: clients that may be on the server's side.
        round_trips: how many times the server waited for clients.
        steps: sums that were started.
        aborted_steps: sums that too few clients stayed in.
        completed_share: fraction of the steps that came to a sum.
        unanswered_requests: answers that a client refused.
        graph: who masked with whom; None: nobody, or the run is older than the choice.
    """

    secure: bool
    threat_model: str | None
    threshold: int | None
    colluders: int | None
    round_trips: int | None
    round_trips_per_step: float | None
    key_exchanges: int | None
    steps: int | None
    aborted_steps: int | None
    completed_share: float | None
    unanswered_requests: int | None
    graph: Graph | None = None


class Bytes(Record, frozen=True):
    """Bytes of encoded messages; of one client (mean) unless ``by_client``.

    Attributes:
        overhead: bytes that are not payload: keys, shares, headers, bits that only a sum needs.
        avoidable: bytes that the receiver had already or can derive, by reason.
        fedavg_per_client_up, fedavg_per_client_down: what FedAvg of the same model moves in as many
            rounds; None if clients have different models.
        break_even_parameters: size of a model with which FedAvg moves as many bytes.
    """

    per_client_up: int
    per_client_down: int
    by_phase: dict[str, Traffic]
    by_client: dict[int, Traffic]
    overhead: Traffic
    avoidable: dict[str, Traffic]
    fedavg_per_client_up: int | None
    fedavg_per_client_down: int | None
    break_even_parameters: int | None

    @property
    def both(self) -> int:
        """Bytes of one client, up and down."""
        return self.per_client_up + self.per_client_down


class Seconds(Record, frozen=True):
    """Seconds by activity; the rest of ``total`` is set-up and measuring.

    ``busy`` is what the method itself took: all activities without ``independent`` training.
    """

    total: float
    busy: float
    local_training: float
    dreaming: float
    secure_aggregation: float
    acquisition: float
    independent: float


class Summary(Record, frozen=True, omit_defaults=True):
    """The file summary.json: what a run has done so far.

    Attributes:
        format: `FORMAT`.
        test_digest: SHA-256 of the test part, in hex.
        reported_round: the round that ``accuracy`` was measured after.
        iterations: forward and backward passes of one client over a minibatch.
        resumed: how often the run was gone on with after an interruption.
        dreaming: None for a baseline.
        baseline: settings of a baseline; None for a method that dreams.
        privacy: None without differential privacy.
        step_size_factor: in a comparison, what tuning multiplied the step size by.
        largest_class: share of a client's largest class in its examples, mean over clients; what
            always predicting it reaches on the client's own mix of classes.
        single_owner_classes: classes of which one client alone has examples.
    """

    format: int
    method: str
    dataset: str
    test_digest: str
    partition: str
    clients: int
    models: tuple[str, ...]
    seed: int
    rounds: int
    rounds_finished: int
    reported_round: int | None
    weights: str
    resumed: int
    iterations: float
    dreaming: Dreaming | None
    baseline: dict[str, int | float | bool | str] | None
    protocol: Protocol
    accuracy: Accuracy
    privacy: Guarantee | None
    bytes: Bytes
    seconds: Seconds
    step_size_factor: float | None = None
    largest_class: float | None = None
    single_owner_classes: int | None = None


class Row(Record, frozen=True):
    """One line of metrics.jsonl: a round's accuracies, and what the run has cost so far.

    Attributes:
        clients, independent: test accuracy of every client, 0 to 1.
        personal, independent_personal: the same on each client's own mix of classes.
        server: accuracy of the server's student, or of the one model for all.
        validation: mean accuracy on the clients' validation parts; None under DP.
        bytes_up, bytes_down: of one client since the beginning.
        iterations, seconds, epsilon: since the beginning.
        bytes_by_phase: of this round alone.
    """

    round: int
    clients: tuple[float, ...]
    independent: tuple[float, ...]
    personal: tuple[float, ...]
    independent_personal: tuple[float, ...]
    server: float | None
    validation: float | None
    aborted_steps: int
    bytes_up: int
    bytes_down: int
    iterations: float
    seconds: float
    epsilon: float | None
    bytes_by_phase: dict[str, Traffic]

    @property
    def bytes_both(self) -> int:
        """Bytes up and down together."""
        return self.bytes_up + self.bytes_down


class FormatError(ValueError):
    """A file was written in another format than the one that this version reads."""


class _Header(msgspec.Struct):
    """Read first and leniently; format 1 called its number `schema_version`."""

    format: int | None = None
    schema_version: int | None = None


def pretty(record: msgspec.Struct) -> str:
    """Return a record as JSON that people can read, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n"


def compact(record: msgspec.Struct) -> str:
    """Return a record as JSON on one line."""
    return msgspec.json.encode(record).decode()


def parse(data: bytes | str, kind: type[_T]) -> _T:
    """Return the summary or comparison that a file holds.

    Raises:
        FormatError: it has another format number.
        ValueError: it is damaged: no JSON, or not what the struct says.
    """
    try:
        header = msgspec.json.decode(data, type=_Header)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    found = header.format if header.format is not None else header.schema_version
    if found is None:
        raise FormatError(f"no format number; this version reads format {FORMAT}")
    if found != FORMAT:
        raise FormatError(f"format {found}; this version reads format {FORMAT}")
    return msgspec.json.decode(data, type=kind)


def parse_row(line: bytes | str) -> Row:
    """Return the row that a line of metrics.jsonl holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        return msgspec.json.decode(line, type=Row)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def traffic(table: Mapping[str, Mapping[str, int]]) -> dict[str, Traffic]:
    """Return a byte ledger's table with a struct a row."""
    return {name: Traffic(up=by["up"], down=by["down"]) for name, by in table.items()}
