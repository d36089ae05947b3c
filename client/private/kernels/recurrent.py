"""LSTM and tanh recurrences, both directions in one loop over time, by hand.

Time leads, so that a step is one block of memory: tables are (D, T, B, ...) with D = 1 or 2 directions; the
second direction's frames are turned around beforehand (as in `common.models.layers.Recurrent`).

Forward: one product makes all input gates of all steps. A step then adds h W' and takes its non-linearities
in place. Backward: the factors that do not depend on the recurrence are computed for several steps at once; a
step is left with five operations. Weights: one batched product of gate gradients with inputs and states.
"""

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from sottovoce.client.private.kernels.base import Kernel, Saved, Weight
from sottovoce.client.private.sink import Sink
from sottovoce.common.models.layers import Recurrent, turned

Products = tuple[tuple[Tensor, Tensor, Tensor], ...]
BLOCK_STEPS = 8  # steps whose factors are computed at once: a megabyte, which stays in the cache until used


class RecurrentKernel(Kernel):
    """A `Recurrent` of nn.LSTM or nn.RNN. Subclasses hold the loop over time."""

    def __init__(self, module: Recurrent, sink: Sink) -> None:
        super().__init__(module, sink)
        self.cells = [cell for cell in (module.onward, module.backward_) if cell is not None]
        self.biases: list[tuple[Tensor, Tensor]] = [(c.bias_ih_l0, c.bias_hh_l0) for c in self.cells]  # type: ignore[misc]
        self.hidden = self.cells[0].hidden_size
        self.inward = [Weight(cell, "weight_ih_l0") for cell in self.cells]
        self.across = [Weight(cell, "weight_hh_l0") for cell in self.cells]

    def scan(self, gates: Tensor, across: Tensor) -> tuple[Tensor, Saved]:
        """Runs the recurrence in place over `gates` (D, T, B, G); `across` is W_hh (D, G, H).

        Returns the states (D, T + 1, B, H), beginning with zeros, and what `unwind` needs.
        """
        raise NotImplementedError

    def unwind(self, slopes: Tensor, states: Tensor, saved: Sequence[Tensor], across: Tensor) -> Tensor:
        """Returns the gradient of the gates, from that of the states (D, T, B, H), which is overwritten."""
        raise NotImplementedError

    def scaled(self, weight: Tensor) -> Tensor:
        """Returns a weight (D, G, ...) as `scan` wants it."""
        return weight

    def forward(self, values: Tensor, *context: Tensor) -> tuple[Tensor, Saved]:
        batch, n_frames, width = values.shape
        when = self._when(context[0], n_frames)
        frames = values.reshape(-1, width).index_select(0, _frame_rows(when)).view(len(when), -1, width)
        inward, across = (torch.stack([w.value() for w in weights]) for weights in (self.inward, self.across))
        biases = self.scaled(torch.stack([(one + other).detach() for one, other in self.biases]))
        gates = torch.baddbmm(biases[:, None], frames, self.scaled(inward).transpose(1, 2))
        states, saved = self.scan(gates.view(len(when), n_frames, batch, -1), self.scaled(across))
        output = states.view(-1, self.hidden).index_select(0, _state_rows(when))
        return output.view(batch, n_frames, -1), (frames, inward, across, when, states, *saved)

    def backward(self, gradient: Tensor, saved: Saved, *, wants_input: bool) -> Tensor | None:
        frames, inward, across, when, states, *rest = saved
        n_directions, batch, n_frames = when.shape
        rows = (_frame_rows(when).view(n_directions, -1) * n_directions).add_(_counted(when, 0).view(-1, 1))
        slopes = gradient.reshape(-1, self.hidden).index_select(0, rows.view(-1))
        gates = self.unwind(slopes.view(n_directions, n_frames, batch, -1), states, rest, across)
        self._write(gates, frames.view(n_directions, n_frames, batch, -1), states)
        if not wants_input:
            return None
        found = torch.bmm(gates.view(n_directions, n_frames * batch, -1), inward)
        onward, *backwards = (
            part.index_select(0, (seen * batch + _counted(seen, 0)).view(-1))
            for part, seen in zip(found.unbind(0), when.unbind(0), strict=True)
        )
        for part in backwards:
            onward += part
        return onward.view(batch, n_frames, -1)

    def _write(self, gates: Tensor, frames: Tensor, states: Tensor) -> None:
        for d, biases in enumerate(self.biases):
            own = gates[d].transpose(0, 1)
            self.inward[d].write(self.sink, own, frames[d].transpose(0, 1))
            self.across[d].write(self.sink, own, states[d, :-1].transpose(0, 1))
            if any(self.sink.wants(bias) for bias in biases):
                total = gates[d].sum(0)
                for bias in biases:  # torch keeps two, whose gradients are the same
                    self.sink.total(bias, total)

    def _when(self, lengths: Tensor, n_frames: int) -> Tensor:
        """Returns (D, B, T): at which step a direction sees a frame, and which frame it sees at that step.

        These are the same, since turning around twice changes nothing.
        """
        onward = torch.arange(n_frames, device=lengths.device).expand(len(lengths), -1)
        return torch.stack([onward, turned(lengths, n_frames)][: len(self.cells)])


def _counted(like: Tensor, axis: int) -> Tensor:
    """Returns 0, 1, ... along one axis, of extent 1 along the others."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return torch.arange(like.shape[axis], device=like.device).view(shape)


def _frame_rows(when: Tensor) -> Tensor:
    """Returns which row of a table (B T) stands at each place of (D T B)."""
    n_frames = when.shape[2]
    return (when + _counted(when, 1) * n_frames).transpose(1, 2).reshape(-1)


def _state_rows(when: Tensor) -> Tensor:
    """Returns which row of the states (D (T + 1) B) stands at each place of the output (B T D)."""
    _, batch, n_frames = when.shape
    steps = when + 1 + _counted(when, 0) * (n_frames + 1)
    return (steps * batch + _counted(when, 1)).permute(1, 2, 0).reshape(-1)


class RnnKernel(RecurrentKernel):
    """h = tanh(x W' + h U' + b)."""

    def __init__(self, module: Recurrent, sink: Sink) -> None:
        super().__init__(module, sink)
        if any(cell.nonlinearity != "tanh" for cell in self.cells):
            raise ValueError("Expected an nn.RNN of tanh; came another non-linearity.")

    def scan(self, gates: Tensor, across: Tensor) -> tuple[Tensor, Saved]:
        n_directions, n_frames, batch, hidden = gates.shape
        states = gates.new_empty(n_directions, n_frames + 1, batch, hidden)
        states[:, 0] = 0.0
        recurrence = _products(gates, states[:, :-1], across.transpose(1, 2))
        for products, gate, following in zip(recurrence, *_each_step(gates, states[:, 1:]), strict=True):
            _add(products)
            torch.tanh(gate, out=following)
        return states, ()

    def unwind(self, slopes: Tensor, states: Tensor, saved: Sequence[Tensor], across: Tensor) -> Tensor:
        factors = 1.0 - states[:, 1:].square()
        recurrence = [*_products(slopes[:, :-1], slopes[:, 1:], across), ()]
        steps = list(zip(recurrence, *_each_step(slopes, factors), strict=True))
        for products, slope, factor in reversed(steps):
            _add(products)
            slope.mul_(factor)
        return slopes


class LstmKernel(RecurrentKernel):
    """Gates in torch's order: input, forget, cell, output.

    tanh(x) = 2 sigmoid(2 x) - 1, so with the cell gate's rows doubled one sigmoid serves all four gates.
    """

    def scaled(self, weight: Tensor) -> Tensor:
        weight = weight.clone()
        weight[:, 2 * self.hidden : 3 * self.hidden] *= 2.0
        return weight

    def scan(self, gates: Tensor, across: Tensor) -> tuple[Tensor, Saved]:
        n_directions, n_frames, batch, _ = gates.shape
        hidden = self.hidden
        states, cells = gates.new_empty(2, n_directions, n_frames + 1, batch, hidden)
        states[:, 0], cells[:, 0] = 0.0, 0.0
        heights = torch.empty_like(cells[:, 1:])  # tanh of the cells
        minus_one = gates.new_full((), -1.0)
        tables = (
            gates,
            *torch.split(gates, hidden, dim=3),
            heights,
            cells[:, :-1],
            cells[:, 1:],
            states[:, 1:],
        )
        recurrence = _products(gates, states[:, :-1], across.transpose(1, 2))
        for products, gate, i, f, g, o, height, before, c, h in zip(
            recurrence, *_each_step(*tables), strict=True
        ):
            _add(products)
            gate.sigmoid_()
            torch.add(minus_one, g, alpha=2.0, out=g)
            torch.mul(f, before, out=c).addcmul_(i, g)
            torch.mul(o, torch.tanh(c, out=height), out=h)
        return states, (gates, cells, heights)

    def unwind(self, slopes: Tensor, states: Tensor, saved: Sequence[Tensor], across: Tensor) -> Tensor:
        gates, cells, heights = saved
        n_frames = slopes.shape[1]
        result = torch.empty_like(gates)
        recurrence = [*_products(slopes[:, :-1], result[:, 1:], across), ()]
        carried = slopes.new_zeros(slopes[:, 0].shape)
        for end in range(n_frames, 0, -BLOCK_STEPS):
            block = slice(max(0, end - BLOCK_STEPS), end)
            own = gates[:, block], cells[:, block], heights[:, block]
            self._unwind_block(recurrence[block], slopes[:, block], result[:, block], carried, *own)
        return result

    def _unwind_block(
        self,
        recurrence: Sequence[Products],
        slopes: Tensor,
        result: Tensor,
        carried: Tensor,
        gates: Tensor,
        cells: Tensor,
        heights: Tensor,
    ) -> None:
        """Fills `result`, the gates' gradient at some steps; `carried` is the cells', from the step after them."""
        into, forget, cell, out = torch.split(gates, self.hidden, dim=3)
        # the slope of each gate, times what the gate is multiplied by
        torch.addcmul(gates, gates, gates, value=-1.0, out=result)
        by_into, by_forget, by_cell, by_out = torch.split(result, self.hidden, dim=3)
        by_into.mul_(cell)
        by_forget.mul_(cells)
        torch.addcmul(into, into * cell, cell, value=-1.0, out=by_cell)
        by_out.mul_(heights)
        to_cell = torch.addcmul(out, out * heights, heights, value=-1.0)
        inner = torch.unflatten(result[..., : 3 * self.hidden], 3, (3, self.hidden))
        tables = (slopes, inner, by_out, to_cell, forget)
        steps = list(zip(recurrence, *_each_step(*tables), strict=True))
        for products, slope, three, last, height, f in reversed(steps):
            _add(products)
            carried.addcmul_(slope, height)
            three.mul_(carried[:, :, None])
            last.mul_(slope)
            carried.mul_(f)


def _products(into: Tensor, of: Tensor, by: Tensor) -> list[Products]:
    """Returns each step's products, one a direction: into[d, t] += of[d, t] @ by[d].

    Direction by direction and not batched: only a whole table's step is not one block of memory, and torch's
    batched product would cut it up anew at every step.
    """
    directions = (
        zip(target.unbind(0), source.unbind(0), repeat(weight))
        for target, source, weight in zip(into, of, by, strict=True)
    )
    return list(zip(*directions, strict=True))


def _add(products: Products) -> None:
    for target, source, weight in products:
        target.addmm_(source, weight)


def _each_step(*tables: Tensor) -> list[tuple[Tensor, ...]]:
    """Returns the steps of tables (D, T, ...)."""
    return [table.unbind(1) for table in tables]
