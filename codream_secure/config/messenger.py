"""The settings of ``--method codream-messenger``: a common model beside the clients' own."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from codream_secure.config.bounds import Bits, Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class MessengerConfig:
    """Which common model clients average, how often, and how it and their own models learn."""

    messenger: Annotated[
        str | None,
        Meta(
            description="architecture of codream-messenger's common model (default: lenet5, mlp "
            "under DP)"
        ),
    ] = None
    messenger_sums: Annotated[
        Positive, Meta(description="how often a round averages the common model")
    ] = 10
    messenger_steps: Annotated[
        Positive,
        Meta(description="local steps of both models before each average"),
    ] = 16
    messenger_bits: Annotated[
        Bits, Meta(description="bits of a number of the common model's update")
    ] = 8
    messenger_mix: Annotated[
        bool,
        Meta(description="private models follow the common model on own cut-mixed pictures"),
    ] = True
