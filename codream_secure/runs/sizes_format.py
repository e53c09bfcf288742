"""The contents of sizes.json, which `compare --sizes` writes: a `RoundSizes`."""

from dataclasses import dataclass

import msgspec

from codream_secure.aggregation.byte_ledger import megabytes
from codream_secure.data.spec import InputSpec

SPEC = InputSpec(3, 32, 32, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of everything that is sent in a round.

    Args:
        clients: n; a sum's field, and so its bits, grow with it.
        dreams, batches: B dreams in each of so many batches.
        bits: q, of one gradient coordinate.
        label_bits: of one label.
        dream_steps: R, of plain CoDream.
        fast_steps: R, of fast mode, whose last step also asks for labels.
        image: of a dream.
    """

    clients: int = 4
    dreams: int = 256
    batches: int = 5
    bits: int = 2
    label_bits: int = 8
    dream_steps: int = 200
    fast_steps: int = 1
    image: InputSpec = SPEC


class ModelSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes for one model.

    Attributes:
        model: its name.
        numbers: weights and buffers that FedAvg sends.
        bytes: by method, of one client in a round, "up" and "down".
        megabytes: both ways, as the paper prints them and as the official code sends them; None
            where the paper says nothing.
    """

    model: str
    numbers: int
    bytes: dict[str, dict[str, int]]
    megabytes: dict[str, float | None]

    def both_ways(self) -> dict[str, float | None]:
        """Return the megabytes of one client, both ways, of everything that is known."""
        ours = {name: megabytes(size) for name, size in self.bytes.items()}
        return {**ours, **self.megabytes}


class RoundSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The file sizes.json.

    Attributes:
        shape: of the messages.
        field_bits: bits that one summed coordinate takes.
        rows: one for each model.
        crossover: by variant of FedAvg and of dreaming, the model size above which dreaming sends
            less.
    """

    shape: Shape
    field_bits: int
    rows: list[ModelSizes]
    crossover: dict[str, dict[str, float]]
