"""LSTM and tanh recurrences, both directions in one loop over time, by hand.

Time leads, so that a step is one block of memory: tables are (D, T, B, ...) with D = 1 or 2 directions; the
second direction's frames are turned around beforehand (as in `common.models.layers.Recurrent`).

Forward: one product makes all input gates of all steps. A step then adds h W' and takes its non-linearities
in place. Backward: every factor that does not depend on the recurrence is computed for all steps at once; a
step is left with five operations. Weights: one batched product of gate gradients with inputs and states.
"""

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from sottovoce.client.private.kernels.base import Kernel, Saved, Weight
from sottovoce.client.private.sink import Sink
from sottovoce.common.models.layers import Recurrent, turned


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

    def forward(self, values: Tensor, *context: Tensor) -> tuple[Tensor, Saved]:
        batch, n_frames, width = values.shape
        order = self._order(context[0], n_frames)
        frames = values.reshape(-1, width).index_select(0, order.view(-1)).view(len(self.cells), -1, width)
        inward, across = (torch.stack([w.value() for w in weights]) for weights in (self.inward, self.across))
        biases = torch.stack([(one + other).detach() for one, other in self.biases])
        gates = torch.baddbmm(biases[:, None], frames, inward.transpose(1, 2))
        states, saved = self.scan(gates.view(len(self.cells), n_frames, batch, -1), across)
        places = self._places(order)
        outputs = [
            s[1:].reshape(-1, self.hidden).index_select(0, p) for s, p in zip(states, places, strict=True)
        ]
        output = torch.cat(outputs, dim=1).view(batch, n_frames, -1)
        return output, (frames, inward, across, order, states, *saved)

    def backward(self, gradient: Tensor, saved: Saved, *, wants_input: bool) -> Tensor | None:
        frames, inward, across, order, states, *rest = saved
        batch, n_frames = gradient.shape[:2]
        table = gradient.reshape(batch * n_frames, len(self.cells), self.hidden)
        slopes = torch.stack([table[:, d].index_select(0, o) for d, o in enumerate(order)])
        gates = self.unwind(slopes.view(len(self.cells), n_frames, batch, -1), states, rest, across)
        self._write(gates, frames.view(*gates.shape[:3], -1), states)
        if not wants_input:
            return None
        turned_back = torch.bmm(gates.view(len(self.cells), n_frames * batch, -1), inward)
        result = turned_back[0].index_select(0, self._places(order)[0])
        for direction, places in enumerate(self._places(order)[1:], start=1):
            result += turned_back[direction].index_select(0, places)
        return result.view(batch, n_frames, -1)

    def _write(self, gates: Tensor, frames: Tensor, states: Tensor) -> None:
        for d, biases in enumerate(self.biases):
            own = gates[d].transpose(0, 1)
            self.inward[d].write(self.sink, own, frames[d].transpose(0, 1))
            self.across[d].write(self.sink, own, states[d, :-1].transpose(0, 1))
            if any(self.sink.wants(bias) for bias in biases):
                total = gates[d].sum(0)
                for bias in biases:  # torch keeps two, whose gradients are the same
                    self.sink.total(bias, total)

    def _order(self, lengths: Tensor, n_frames: int) -> Tensor:
        """Returns, for each direction, which row of a (B T) table stands at each place of a (T B) one."""
        batch = len(lengths)
        starts = torch.arange(batch, device=lengths.device)[:, None] * n_frames
        onward = torch.arange(n_frames, device=lengths.device)[None, :].expand(batch, -1)
        frames = [onward, turned(lengths, n_frames)][: len(self.cells)]
        return torch.stack([(starts + f).t().reshape(-1) for f in frames])

    def _places(self, order: Tensor) -> Tensor:
        """Returns the inverse of `_order`."""
        return torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )


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

    def scan(self, gates: Tensor, across: Tensor) -> tuple[Tensor, Saved]:
        n_directions, n_frames, batch, _ = gates.shape
        hidden = self.hidden
        states, cells = gates.new_empty(2, n_directions, n_frames + 1, batch, hidden)
        states[:, 0], cells[:, 0] = 0.0, 0.0
        heights = torch.empty_like(cells[:, 1:])  # tanh of the cells
        turned_weight = across.transpose(1, 2).clone()
        for rows in (turned_weight, gates):
            rows[..., 2 * hidden : 3 * hidden] *= 2.0
        minus_one = gates.new_full((), -1.0)
        tables = (
            gates,
            *torch.split(gates, hidden, dim=3),
            heights,
            cells[:, :-1],
            cells[:, 1:],
            states[:, 1:],
        )
        recurrence = _products(gates, states[:, :-1], turned_weight)
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
        into, forget, cell, out = torch.split(gates, self.hidden, dim=3)
        # d gate / d its input, times what the gate is multiplied by; autograd's copies must stay as they are
        factors = torch.addcmul(gates, gates, gates, value=-1.0)
        by_into, by_forget, by_cell, by_out = torch.split(factors, self.hidden, dim=3)
        by_into.mul_(cell)
        by_forget.mul_(cells[:, :-1])
        torch.addcmul(into, into * cell, cell, value=-1.0, out=by_cell)
        by_out.mul_(heights)
        to_cell = torch.addcmul(out, out * heights, heights, value=-1.0)
        inner = torch.unflatten(factors[..., : 3 * self.hidden], 3, (3, self.hidden))
        carried = slopes.new_zeros(slopes[:, 0].shape)
        recurrence = [*_products(slopes[:, :-1], factors[:, 1:], across), ()]
        tables = (slopes, inner, by_out, to_cell, forget)
        for products, slope, three, last, height, f in reversed(
            list(zip(recurrence, *_each_step(*tables), strict=True))
        ):
            _add(products)
            carried.addcmul_(slope, height)
            three.mul_(carried[:, :, None])
            last.mul_(slope)
            carried.mul_(f)
        return factors


Products = tuple[tuple[Tensor, Tensor, Tensor], ...]


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
