"""`secure_sum` and `secure_mean`: one masked sum of vectors, with all parties in this process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocols.driver import SYSTEM, run_aggregation
from protocols.errors import ConfigError
from protocols.params import (
    DIGEST_SIZE,
    MAX_INPUT,
    MIN_CLIENTS,
    AggregationParams,
    Section,
    default_threshold,
)
from protocols.phases import DropSchedule, Phase
from protocols.primitives.keys import Entropy, SigningKey
from protocols.quantization import Quantizer
from protocols.signing import Credentials

_BITS = 16
# The largest integer that a sum can have and still fit the largest field, 2^32 - 5 (SPEC 2.3).
_LARGEST_SUM = (1 << 32) - 6
_NAME = "values"
# Bytes of memory for one number: of each client, and beside them (measured).
_OF_A_CLIENT, _OF_ALL = 8, 19


def secure_sum(
    vectors: Mapping[int, ArrayLike],
    *,
    clip: float | None = None,
    bits: int | None = None,
    threshold: int | None = None,
    malicious: bool = False,
    silent: Collection[int] = (),
    entropy: Entropy | None = None,
) -> NDArray[Any]:
    """Sum vectors by the whole masking protocol, with all clients and the server in this process.

    So it protects nobody here: it is for trying the protocol and for testing. On machines of their
    own the parties exchange the same bytes. A client is a `ClientSession`, the server a
    `ServerSession`, and whoever carries the messages calls them in this order::

        server = ServerSession(batch)
        clients = {u: ClientSession(batch, u, os.urandom) for u in batch.roster}
        for u, client in clients.items():
            server.receive(u, client.advertise_keys())
        for u, directory in server.end_round().items():
            server.receive(u, clients[u].share_keys(directory))
        for u, delivery in server.end_round().items():
            clients[u].open_bundles(delivery)
        for u, request in server.begin_step(task).items():
            server.receive(u, clients[u].masked_input(request, task, inputs[u]))
        for u, survivors in server.end_round().items():
            server.receive(u, clients[u].unmask(survivors))
        server.end_round()
        total = server.result.totals

    Args:
        vectors: client id -> numbers, at least three clients. All arrays have one shape, and all
            are integers or all are floats.
        clip: for floats, and needed there: the bound c > 0. Values beyond it are cut to -c or c, a
            NaN counts as 0.
        bits: for floats: bits of one rounded value, 1..24; default 16. Rounding is random and
            unbiased, with an error below ``2 * clip / (2**bits - 1)`` for each client.
        threshold: clients that must stay in the sum, above half of all; default
            ``floor(2n/3) + 1``.
        malicious: whether clients sign their messages and compare survivor sets.
        silent: clients that send nothing after the keys were exchanged. They are not in the sum.
        entropy: ``entropy(k)`` returns k secret random bytes. None asks the operating system.

    Returns:
        The sum over the clients that stayed, in the shape of the inputs: int64 and exact for
        integers, float64 for floats.

    Raises:
        ConfigError: the arguments do not fit each other, an integer is too large, or this machine
            has less memory than the sum takes.
        NotEnoughSurvivors: fewer clients than the threshold stayed.
    """
    total, _ = _summed(
        vectors,
        clip=clip,
        bits=bits,
        threshold=threshold,
        malicious=malicious,
        silent=silent,
        entropy=entropy,
    )
    return total


def secure_mean(
    vectors: Mapping[int, ArrayLike],
    *,
    clip: float | None = None,
    bits: int | None = None,
    threshold: int | None = None,
    malicious: bool = False,
    silent: Collection[int] = (),
    entropy: Entropy | None = None,
) -> NDArray[np.float64]:
    """Return the mean that `secure_sum` gives for the clients that stayed: float64.

    Arguments and errors are those of `secure_sum`, and here too all parties run in this process.
    """
    total, count = _summed(
        vectors,
        clip=clip,
        bits=bits,
        threshold=threshold,
        malicious=malicious,
        silent=silent,
        entropy=entropy,
    )
    return np.asarray(total / count, dtype=np.float64)


def _summed(
    vectors: Mapping[int, ArrayLike],
    *,
    clip: float | None,
    bits: int | None,
    threshold: int | None,
    malicious: bool,
    silent: Collection[int],
    entropy: Entropy | None,
) -> tuple[NDArray[Any], int]:
    """Return the sum, and how many clients are in it."""
    entropy = entropy or SYSTEM
    for name, whole in (("bits", bits), ("threshold", threshold)):
        if whole is not None and not isinstance(whole, int | np.integer):
            raise ConfigError(f"{name} must be a whole number, not {whole!r}")
    if clip is not None and not isinstance(clip, int | float | np.number):
        raise ConfigError(f"clip must be a number, not {clip!r}")
    arrays = _checked(vectors)
    if not set(silent) <= set(arrays):
        raise ConfigError("silent names a client that has no vector; leave it out")
    roster = tuple(arrays)
    _check_memory(arrays[roster[0]].size, len(roster))
    code = _code(arrays, clip, bits)
    credentials = _credentials(roster, entropy) if malicious else None
    first = arrays[roster[0]]
    params = AggregationParams(
        session=entropy(DIGEST_SIZE),
        roster=roster,
        threshold=default_threshold(len(roster)) if threshold is None else threshold,
        threat_model="malicious" if malicious else "semi-honest",
        identities=credentials.identities(roster) if credentials else (),
        step=0,
        kind="sum",
        sections=(Section(name=_NAME, length=first.size, maximum=code.levels, clip=code.clip),),
        broadcast_digest=bytes(DIGEST_SIZE),
    )
    # With integers every value is a level, so nothing is left to round (SPEC 7.1).
    found = run_aggregation(
        {
            u: {_NAME: code.encode(array, seed=entropy(32), step=0, section=_NAME)}
            for u, array in arrays.items()
            if u not in silent
        },
        params,
        drops=DropSchedule(dict.fromkeys(silent, Phase.MASKED_INPUT)),
        entropy=entropy,
        credentials=credentials,
    )
    count = len(found.survivors)
    total = code.decode_sum(found.totals[_NAME], count).reshape(first.shape)
    return (np.rint(total).astype(np.int64) if first.dtype.kind in "iu" else total), count


def _checked(vectors: Mapping[int, ArrayLike]) -> dict[int, NDArray[Any]]:
    """Return the vectors as arrays in the order of their clients, all of one kind and shape."""
    if not all(isinstance(client, int) for client in vectors):
        raise ConfigError("clients are named by whole numbers")
    try:
        arrays = {client: np.asarray(vectors[client]) for client in sorted(vectors)}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a vector is no array of numbers: {error}") from None
    if len(arrays) < MIN_CLIENTS:
        raise ConfigError(f"a masked sum needs {MIN_CLIENTS} clients or more, not {len(arrays)}")
    kinds = {"i" if array.dtype.kind in "iu" else array.dtype.kind for array in arrays.values()}
    if kinds not in ({"i"}, {"f"}):
        raise ConfigError("vectors must be all integers or all floats")
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1:
        raise ConfigError(f"vectors must have one shape, not {', '.join(map(str, sorted(shapes)))}")
    if 0 in shapes.pop():
        raise ConfigError("vectors must not be empty")
    return arrays


def _check_memory(length: int, clients: int) -> None:
    """Refuse a sum that takes more memory than this machine has, before any is taken."""
    needed = length * (_OF_A_CLIENT * clients + _OF_ALL)
    try:
        np.empty(needed, np.uint8)  # nothing is written to it, so that it takes no memory itself
    except MemoryError:
        raise ConfigError(
            f"summing {clients} vectors of {length} numbers takes {needed / 1e9:.1f} GB, more than "
            "this machine has; sum one part of the vectors after the other"
        ) from None


def _code(arrays: Mapping[int, NDArray[Any]], clip: float | None, bits: int | None) -> Quantizer:
    """Return how numbers become levels: rounded for floats, one by one for integers."""
    n = len(arrays)
    most = min(MAX_INPUT, _LARGEST_SUM // n)
    if next(iter(arrays.values())).dtype.kind == "f":
        if clip is None:
            raise ConfigError("floats need clip=, the bound that every value is cut to")
        levels = (1 << (_BITS if bits is None else bits)) - 1 if bits is None or bits > 0 else 0
        if not 1 <= levels <= most:
            raise ConfigError(f"bits must be 1 to {(most + 1).bit_length() - 1} for {n} clients")
        return Quantizer(levels, clip)
    if clip is not None or bits is not None:
        raise ConfigError("clip and bits are for floats; integers are summed exactly")
    bound = most // 2
    for client, array in arrays.items():
        if int(array.max()) > bound or int(array.min()) < -bound:
            raise ConfigError(f"integers must be -{bound} to {bound} for {n} clients: {client}")
    return Quantizer(2 * bound, float(bound))


def _credentials(roster: tuple[int, ...], entropy: Entropy) -> Credentials:
    return Credentials({u: SigningKey.from_private_bytes(entropy(32)) for u in roster})
