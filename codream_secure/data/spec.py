"""Public facts about the data: the shape of an image, the number of classes, the scaling."""

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Shape of one image (channels x height x width, in pixels) and the number of classes.

    Raises:
        ValueError: A number is not positive.
    """

    channels: int
    height: int
    width: int
    classes: int

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width, self.classes) < 1:
            msg = f"every number of an input spec must be at least 1: {self}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Public constants: a model sees `(pixel - mean) / std`, channel by channel.

    Attributes:
        mean: One number for each channel, in units of a pixel value in [0, 1].
        std: One positive number for each channel, in the same units.

    Raises:
        ValueError: The lengths differ, or a number is not finite, or a `std` is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(isfinite(number) for number in self.mean + self.std)
        if not self.mean or len(self.mean) != len(self.std) or not finite or min(self.std) <= 0:
            msg = f"scaling needs a finite mean and a positive std for each channel: {self}"
            raise ValueError(msg)
