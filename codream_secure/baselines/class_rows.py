"""Dense rows, one for each class: what clients of FD and of methods with prototypes send.

A client's row is the mean over its examples of the class, and zeros where it has none. Beside the
rows travels a number a class, +1 for a client that has it and -1 for one that has not: those are
the ends of a quantizer's range, so their sum is exact at any number of bits. From masked sums the
server learns for every class the sum of its owners' rows and how many owners there are; where
that is one, the sum is that owner's own row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codream_secure.baselines.exchange import ModelExchange
from codream_secure.data.examples import Examples
from codream_secure.models.tensors import Tensors

_ROWS, _OWNED = "rows", "owned"
_BATCH = 10


@dataclass(frozen=True, slots=True)
class ClassRows:
    """A row for each class.

    Attributes:
        rows: float, shape (classes, width); zeros where ``counts`` is 0.
        counts: of one client its examples, of a mean its owners; int64, shape (classes,).
    """

    rows: Tensor
    counts: Tensor

    @property
    def owned(self) -> Tensor:
        """Whether anybody has a class, bool, shape (classes,)."""
        return self.counts > 0

    @classmethod
    def none(cls, classes: int, width: int, device: torch.device) -> "ClassRows":
        """Return zeros for every class."""
        counts = torch.zeros(classes, dtype=torch.int64, device=device)
        return cls(torch.zeros(classes, width, device=device), counts)


def mean_by_class(values: Tensor, y: Tensor, classes: int) -> ClassRows:
    """Return the mean of each class's values.

    Args:
        values: float, shape (N, width).
        y: labels, int64, shape (N,).
        classes: number of classes.
    """
    counts = torch.bincount(y, minlength=classes)
    total = torch.zeros(classes, values.shape[1], device=values.device).index_add(0, y, values)
    return ClassRows(total / counts.clamp(min=1)[:, None], counts)


@torch.no_grad()
def own_rows(
    model: nn.Module, examples: Examples, classes: int, of: Callable[[nn.Module, Tensor], Tensor]
) -> ClassRows:
    """Return the means by class of what a trained model gives for a client's examples.

    Args:
        model: evaluated in eval mode.
        examples: of the client.
        classes: number of classes.
        of: gives values of images, float, shape (B, width).
    """
    model.eval()
    values = torch.cat([of(model, x) for x in torch.split(examples.x, 256)])
    model.train()
    return mean_by_class(values, examples.y, classes)


def mean_over_owners(
    exchange: ModelExchange,
    number: int,
    before: ClassRows,
    compute: Callable[[int], ClassRows],
    scale: float,
) -> ClassRows | None:
    """Return each class's mean over the clients that have it, and how many these are.

    Args:
        exchange: sums, with masks or without.
        number: of the round.
        before: for the form of the rows.
        compute: gives a client's rows.
        scale: where rows are quantized, values beyond it are clipped.

    Returns:
        The means; None if the step was aborted.
    """
    aborted = exchange.aborted
    sums = exchange.mean_update(
        number, _travelling(before), lambda c: _travelling(compute(c)), {_ROWS: scale, _OWNED: 1.0}
    )
    if exchange.aborted > aborted or not exchange.included:
        return None
    share = (sums[_OWNED] + 1) / 2
    counts = (share * exchange.included).round().long()
    rows = torch.where(counts[:, None] > 0, sums[_ROWS] / share.clamp(min=1e-9)[:, None], 0.0)
    return ClassRows(rows, counts)


def single_rows(
    exchange: ModelExchange, number: int, before: ClassRows, compute: Callable[[int], ClassRows]
) -> dict[int, ClassRows]:
    """Return every client's own rows, which the server of a method without masks receives."""
    sent = exchange.updates(number, _travelling(before), lambda c: _travelling(compute(c)))
    return {c: ClassRows(rows[_ROWS], (rows[_OWNED] > 0).long()) for c, rows in sent.items()}


def delivered(exchange: ModelExchange, number: int, found: ClassRows) -> ClassRows:
    """Send rows and counts to all clients, and return them as they arrive."""
    sent = {_ROWS: found.rows, _OWNED: found.counts.float()}
    received = exchange.deliver(number, sent)
    return ClassRows(received[_ROWS], received[_OWNED].round().long())


def _travelling(rows: ClassRows) -> Tensors:
    return {_ROWS: rows.rows, _OWNED: 2.0 * rows.owned - 1.0}


def stacked(found: Iterable[ClassRows]) -> tuple[Tensor, Tensor]:
    """Return all rows that somebody owns, float, shape (R, width), and their classes, int64."""
    kept = list(found)
    rows = torch.cat([one.rows[one.owned] for one in kept])
    return rows, torch.cat([one.owned.nonzero().flatten() for one in kept])


def fit(
    model: nn.Module,
    rows: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    passes: int,
    rate: float,
    order: torch.Generator,
) -> None:
    """Train a model of the server on rows by SGD, with minibatches of 10 as HtFLlib has them.

    Args:
        model: trained in place.
        rows: and their classes, as `stacked` returns them.
        loss: of a minibatch of rows and classes.
        passes: over all rows.
        rate: step size.
        order: draws the order of rows.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    values, classes = rows
    for _ in range(passes):
        for chosen in torch.split(torch.randperm(len(classes), generator=order), _BATCH):
            index = chosen.to(classes.device)
            optimizer.zero_grad()
            loss(values[index], classes[index]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
