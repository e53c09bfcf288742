"""The names of all methods that can be compared, and what a name means."""

import re
from dataclasses import dataclass

from codream_secure.errors import UserError

DREAMING = ("codream", "codream-fast", "codream-messenger", "fedmd")
MODEL_AVERAGING = ("fedavg", "fedprox", "scaffold", "moon")
# Models of any architecture; what clients send is only ever summed, so masks can hide it.
PEERS = ("fd", "lg-fedavg", "fml", "fedkd", "fedproto", "fedmrl", "messenger")
# These send a row for each class that a client has; rows count alike, whatever --weights says.
CLASS_ROWS = ("fd", "fedproto")
# The server trains on what single clients send, so masks cannot hide it.
SINGLE = ("fedgh", "fedtgp")
# These train a small common model beside the clients' own.
WITH_MESSENGER = ("fml", "fedkd", "fedmrl", "messenger")
# These train the clients' models with the run's own optimizer, as dreaming methods do.
OWN_OPTIMIZER = ("independent", "messenger")
SUMMING = (*MODEL_AVERAGING, *PEERS)
PRIVATE_SUMS = "dpsgd-secure"
OTHERS = (*SINGLE, "fedgen", "avgkd", "independent", "centralized")
_FULL = 32
_SECURE_BITS = 16
_DOWN_BITS = 8
_SUFFIXES = re.compile(r"(?P<secure>-secure)?(-(?P<bits>\d+)bit)?")


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a comparison.

    Attributes:
        name: as the user wrote it.
        family: the algorithm.
        secure: whether sums are masked.
        up, down: bits per number of the model, to the server and back; 32 is float32.
    """

    name: str
    family: str
    secure: bool
    up: int = _FULL
    down: int = _FULL

    @property
    def dreams(self) -> bool:
        """Whether it makes dreams; `simulate` runs such methods."""
        return self.family in DREAMING

    @property
    def one_model(self) -> bool:
        """Whether it yields one model for all clients, whose accuracy is then compared."""
        return self.family in (*MODEL_AVERAGING, PRIVATE_SUMS, "fedgen", "centralized")


def parse_method(name: str, *, secure: bool = True) -> Method:
    """Return the method that a name stands for.

    The methods of `SUMMING` send float32 in the clear. With ``-secure`` their updates are quantized
    to 16 bits and masked. With ``-Nbit`` their updates have N bits and their models 8, as precise
    as gradients of dreams and dreams are, masked or not.

    Args:
        name: for instance ``codream-fast`` or ``fedavg-secure-8bit``.
        secure: whether the sums of methods that dream are masked.

    Raises:
        UserError: there is no such method.
    """
    if name in DREAMING:
        return Method(name, name, secure)
    if name == PRIVATE_SUMS:
        return Method(name, name, secure=True)
    if name in OTHERS:
        return Method(name, name, secure=False)
    for family in SUMMING:
        suffix = _SUFFIXES.fullmatch(name.removeprefix(family))
        if not name.startswith(family) or suffix is None:
            continue
        masked, bits = suffix["secure"] is not None, suffix["bits"]
        if bits is None:
            return Method(name, family, masked, _SECURE_BITS if masked else _FULL)
        if not 1 <= int(bits) <= _SECURE_BITS:
            raise UserError(f"method {name}: 1 to {_SECURE_BITS} bits can be sent, not {bits}")
        return Method(name, family, masked, int(bits), _DOWN_BITS)
    if (family := name.removesuffix("-secure")) in (*SINGLE, "fedgen", "avgkd"):
        raise UserError(
            f"{name}: {family} cannot run masked, it needs single clients' values; leave -secure "
            "out"
        )
    names = ", ".join((*DREAMING, *OTHERS, PRIVATE_SUMS))
    raise UserError(f"unknown method {name!r}: use {names}, or {_forms()}")


def _forms() -> str:
    return f"{', '.join(SUMMING)} with -secure, -8bit or -secure-8bit behind it or without"
