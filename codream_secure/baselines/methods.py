"""The names of all methods that can be compared, and what a name says."""

import re
from dataclasses import dataclass

from codream_secure.errors import UserError

DREAMING = ("codream", "codream-fast", "fedmd")
MODEL_AVERAGING = ("fedavg", "fedprox", "scaffold", "moon")
PRIVATE_SUMS = "dpsgd-secure"
OTHERS = ("fedgen", "avgkd", "independent", "centralized")
_FULL = 32
_SECURE_BITS = 16
_DOWN_BITS = 8
_SUFFIXES = re.compile(r"(?P<secure>-secure)?(-(?P<bits>\d+)bit)?")


@dataclass(frozen=True, slots=True)
class Method:
    """A method as it is compared.

    Attributes:
        name: as the user wrote it.
        family: which algorithm.
        secure: whether its sums are masked.
        up, down: bits of a number of the model in either direction; 32 is float32.
    """

    name: str
    family: str
    secure: bool
    up: int = _FULL
    down: int = _FULL

    @property
    def dreams(self) -> bool:
        """Whether it is one of `simulate`'s."""
        return self.family in DREAMING

    @property
    def one_model(self) -> bool:
        """Whether it yields one model for all, which is then what is compared."""
        return self.family in (*MODEL_AVERAGING, PRIVATE_SUMS, "fedgen", "centralized")


def parse_method(name: str, *, secure: bool = True) -> Method:
    """Return what a name says.

    ``fedavg``, ``fedprox``, ``scaffold`` and ``moon`` send float32 in the clear; with ``-secure``
    updates are quantized to 16 bits and masked; with ``-Nbit`` they have N bits and models come
    down in 8, masked or not: the precision of dreams.

    Args:
        name: for instance ``codream-fast`` or ``fedavg-secure-8bit``.
        secure: whether methods that dream are masked.

    Raises:
        UserError: there is no such method.
    """
    if name in DREAMING:
        return Method(name, name, secure)
    if name == PRIVATE_SUMS:
        return Method(name, name, secure=True)
    if name in OTHERS:
        return Method(name, name, secure=False)
    for family in MODEL_AVERAGING:
        suffix = _SUFFIXES.fullmatch(name.removeprefix(family))
        if not name.startswith(family) or suffix is None:
            continue
        masked, bits = suffix["secure"] is not None, suffix["bits"]
        if bits is None:
            return Method(name, family, masked, _SECURE_BITS if masked else _FULL)
        if not 1 <= int(bits) <= _SECURE_BITS:
            raise UserError(f"method {name}: 1 to {_SECURE_BITS} bits can be sent, not {bits}")
        return Method(name, family, masked, int(bits), _DOWN_BITS)
    names = ", ".join((*DREAMING, *OTHERS, PRIVATE_SUMS))
    raise UserError(f"unknown method {name!r}: use {names}, or {_forms()}")


def _forms() -> str:
    return f"{', '.join(MODEL_AVERAGING)} with -secure, -8bit or -secure-8bit behind it or without"
