"""Where a backward pass leaves each patient's gradient: straight in the row it belongs to.

Guarantees:
  - A layer's products are written while its input and output gradient are at hand; neither is kept. (A record
    of both, emptied after the step, was tried first: held by the graph that it points into, it is a reference
    cycle, and a step that forgot to empty it lost 37 MB.)
  - A parameter used twice gets the sum of both uses; one not used gets zeros.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sottovoce.client.private.rows import Group, Rows


def spans(parameters: Sequence[nn.Parameter]) -> dict[int, slice]:
    """Returns the columns of each parameter, by its id, in the order of `FlatParameters`."""
    found, offset = {}, 0
    for parameter in parameters:
        found[id(parameter)] = slice(offset, offset + parameter.numel())
        offset += parameter.numel()
    return found


class Sink:
    """The matrix (n_patients, n_parameters) of one chunk while a backward pass fills it."""

    def __init__(self, matrix: Tensor, columns: Mapping[int, slice], rows: Rows) -> None:
        self._matrix, self._columns, self._rows = matrix, columns, rows
        self._written: set[int] = set()

    def wants(self, parameter: Tensor | None) -> bool:
        """Says whether the parameter is trained."""
        return parameter is not None and id(parameter) in self._columns

    def product(self, parameter: Tensor | None, left: Tensor, right: Tensor) -> None:
        """Adds the sum over a patient's rows and steps of the outer products left x right.

        `left` (B, T, O), `right` (B, T, I), the parameter (O, I).
        """
        if parameter is None or not self.wants(parameter):
            return
        target = self._slot(parameter, (left.shape[-1], right.shape[-1]))
        keep = self._claim(parameter)
        for group in self._rows.groups:
            _add_products(
                target[group.patients], left[group.utterances], right[group.utterances], group, keep
            )

    def taps(
        self, parameter: Tensor | None, left: Tensor, rights: Sequence[Tensor], shape: tuple[int, int, int]
    ) -> None:
        """Adds the same for the weight (O, C, K) of a convolution.

        `rights` hold, side by side in their last axes, what the taps 0 to K - 1 saw: (B, T, K C) in all.
        """
        if parameter is None or not self.wants(parameter):
            return
        n_out, n_in, n_taps = shape
        target = self._slot(parameter, shape)
        again = self._claim(parameter)
        for group in self._rows.groups:
            block = target[group.patients]
            # One tap's products are together; the parameter has one channel's. The copy turns them.
            found = block.new_empty(block.shape[0], n_out, n_taps * n_in)
            for part, right in zip(
                torch.split(found, [r.shape[-1] for r in rights], dim=2), rights, strict=True
            ):
                _add_products(part, left[group.utterances], right[group.utterances], group, False)
            turned = found.view(-1, n_out, n_taps, n_in).transpose(2, 3)
            block.add_(turned) if again else block.copy_(turned)

    def total(self, parameter: Tensor | None, values: Tensor) -> None:
        """Adds the sum over a patient's rows of `values` (B, *parameter.shape)."""
        if parameter is None or not self.wants(parameter):
            return
        target = self._slot(parameter, values.shape[1:])
        again = self._claim(parameter)
        for group in self._rows.groups:
            own = values[group.utterances]
            if group.n_utterances > 1:
                own = own.reshape(-1, group.n_utterances, *own.shape[1:]).sum(1)
            block = target[group.patients]
            if again:
                block += own
            else:
                block.copy_(own)

    def finish(self) -> None:
        """Puts zeros where no layer has written."""
        for key, span in self._columns.items():
            if key not in self._written:
                self._matrix[:, span] = 0.0

    def _slot(self, parameter: Tensor, shape: Sequence[int]) -> Tensor:
        columns = self._matrix[:, self._columns[id(parameter)]]
        return torch.unflatten(columns, 1, tuple(shape))

    def _claim(self, parameter: Tensor) -> bool:
        """Says whether the parameter's columns hold something already; from now on they do."""
        again = id(parameter) in self._written
        self._written.add(id(parameter))
        return again


def _add_products(target: Tensor, left: Tensor, right: Tensor, group: Group, keep: bool) -> None:
    """Adds to `target` (P, O, I), or replaces what stands there (which may be a NaN of the last step)."""
    for a, b in _pairs(left, right, group.n_utterances):
        torch.baddbmm(target, a.transpose(1, 2), b, beta=float(keep), out=target)
        keep = True


def _pairs(left: Tensor, right: Tensor, n_utterances: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (P, T', O), (P, T', I): a patient's utterances as one long sequence where that needs no copy."""
    if n_utterances == 1:
        yield left, right
    elif left.is_contiguous() and right.is_contiguous():
        n_patients = left.shape[0] // n_utterances
        yield left.view(n_patients, -1, left.shape[-1]), right.view(n_patients, -1, right.shape[-1])
    else:
        for start in range(n_utterances):
            yield left[start::n_utterances], right[start::n_utterances]
