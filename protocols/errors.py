"""The error tree: whose fault it was, and nothing about any secret (SPEC 6.6)."""


class SecAggError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(SecAggError, ValueError):
    """Parameters that no aggregation can run under."""


class DecodeError(SecAggError):
    """Bytes that are not the canonical encoding of an allowed message."""


class LocalProtocolError(SecAggError):
    """The caller misused a session: wrong order, repeated step, wrong input."""


class PolicyError(SecAggError):
    """What the server proposes is outside what this client agrees to; nothing was drawn or sent."""


class RemoteProtocolError(SecAggError):
    """A peer broke the protocol.

    Attributes:
        peer: the client at fault; None stands for the server.
        phase: the round (`phases.Phase`) in which it was noticed.
    """

    def __init__(self, peer: int | None, phase: str, message: str) -> None:
        self.peer = peer
        self.phase = phase
        who = "server" if peer is None else f"client {peer}"
        super().__init__(f"{who}, {phase}: {message}")


class SeedLost(RemoteProtocolError):  # noqa: N818 - an outcome of the protocol, named as one
    """No shares of `peer` that were tried give its seed: it dealt wrong ones, or others lied."""


class NotEnoughSurvivors(SecAggError):  # noqa: N818 - an outcome of the protocol, named as one
    """Fewer clients than the threshold are left; no sum, not even a partial one, exists.

    Attributes:
        phase: the round (`phases.Phase`) that ended below the threshold.
        alive: how many clients sent their message of that round.
        needed: the threshold.
        around: whose neighbours were counted; None if all clients were.
    """

    def __init__(self, phase: str, alive: int, needed: int, around: int | None = None) -> None:
        self.phase = phase
        self.alive = alive
        self.needed = needed
        self.around = around
        who = "clients" if around is None else f"neighbours of client {around}"
        super().__init__(f"{phase}: {alive} {who} left, {needed} needed")


class CryptoError(SecAggError):
    """A cryptographic check failed. Says no more, by design."""
