"""Convolutions over time, as a few products of shifted views: no unfolding, no copy of the input per tap.

With stride s, s neighbouring frames side by side are one block (s C wide), and output t is
block[t] W_0 + block[t + 1] W_1 + ..., where W_q holds the taps q s to q s + s - 1. Blocks of all recordings
lie in one long table, so each term is one matrix product over the whole batch; the few rows at which one
recording meets the next are computed and not used.
"""

import torch
from torch import Tensor, nn

from sottovoce.client.private.kernels.base import Kernel, Saved, Weight
from sottovoce.client.private.sink import Sink


class ConvKernel(Kernel):
    """One nn.Conv1d (B, C, L) -> (B, O, T). Channels-last inside: the model's own transposes cost nothing."""

    def __init__(self, module: nn.Conv1d, sink: Sink) -> None:
        super().__init__(module, sink)
        if module.groups != 1 or module.dilation != (1,) or module.padding_mode != "zeros":
            raise ValueError(f"Expected a Conv1d without groups and dilation, zero-padded; came {module}.")
        if isinstance(module.padding, str):
            raise ValueError(f"Expected the padding of a Conv1d as a number; came {module.padding!r}.")
        self.weight, self.bias = Weight(module, "weight"), module.bias
        self.taps, self.stride, self.margin = module.kernel_size[0], module.stride[0], module.padding[0]
        self.n_terms = -(-self.taps // self.stride)

    def forward(self, values: Tensor, *context: Tensor) -> tuple[Tensor, Saved]:
        weight = _by_tap(self.weight.value())
        blocks, inside = self._blocks(values.transpose(1, 2))
        output = self._apply(blocks, weight, self._n_steps(inside))
        if self.bias is not None:
            output = output + self.bias.detach()
        return output.transpose(1, 2), (blocks, inside, weight)

    def backward(self, gradient: Tensor, saved: Saved, *, wants_input: bool) -> Tensor | None:
        blocks, inside, weight = saved
        steps = gradient.transpose(1, 2).contiguous()
        self.sink.total(self.bias, steps.sum(1))
        self._write(steps, blocks)
        return self._input_gradient(steps, weight, blocks, inside).transpose(1, 2) if wants_input else None

    def _write(self, steps: Tensor, blocks: Tensor) -> None:
        full, up, down = self.weight.full, self.weight.up, self.weight.down
        n_out, n_in = full.shape[:2]
        seen = [blocks[:, q : q + steps.shape[1], :width] for q, width in enumerate(self._widths(n_in))]
        self.sink.taps(full, steps, seen, (n_out, n_in, self.taps))
        if up is not None and down is not None:
            rank = len(down)
            narrow = self._apply(blocks, _by_tap(down.detach().view(rank, n_in, self.taps)), steps.shape[1])
            self.sink.product(up, steps, narrow)
            self.sink.taps(down, steps @ up.detach(), seen, (rank, n_in, self.taps))

    def _n_steps(self, frames: Tensor) -> int:
        return (frames.shape[1] + 2 * self.margin - self.taps) // self.stride + 1

    def _blocks(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the frames (B, L, C) between zeros as blocks (B, N, s C), and where in them the frames are."""
        batch, n_frames, width = frames.shape
        end = self.margin + n_frames
        n_blocks = max(-(-end // self.stride), self._n_steps(frames) + self.n_terms - 1)
        padded = frames.new_empty(batch, n_blocks * self.stride, width)
        inside = padded[:, self.margin : end]
        padded[:, : self.margin], padded[:, end:] = 0.0, 0.0
        inside.copy_(frames)
        return padded.view(batch, n_blocks, -1), inside

    def _widths(self, n_in: int) -> list[int]:
        """Returns the number of columns that each term reads of a block."""
        return [n_in * min(self.stride, self.taps - q * self.stride) for q in range(self.n_terms)]

    def _apply(self, blocks: Tensor, weight: Tensor, n_steps: int) -> Tensor:
        batch, n_blocks, block = blocks.shape
        table, n_out = blocks.view(-1, block), weight.shape[1]
        output = table.new_empty(batch * n_blocks, n_out)
        used = output[: len(output) - self.n_terms + 1]
        for q, part in enumerate(torch.split(weight, block)):
            torch.addmm(used, table[q : q + len(used), : len(part)], part, beta=float(q > 0), out=used)
        return output.view(batch, n_blocks, n_out)[:, :n_steps]

    def _input_gradient(self, steps: Tensor, weight: Tensor, blocks: Tensor, inside: Tensor) -> Tensor:
        batch, n_blocks, block = blocks.shape
        padded = steps.new_zeros(batch, n_blocks, steps.shape[2])
        padded[:, : steps.shape[1]] = steps
        table = padded.view(-1, steps.shape[2])
        result = table.new_empty(len(table), block)
        result[:, len(weight) :] = 0.0  # with fewer taps than the stride, frames that none has seen
        for q, part in enumerate(torch.split(weight, block)):
            later = result[q:, : len(part)]
            torch.addmm(later, table[: len(table) - q], part.t(), beta=float(q > 0), out=later)
        n_frames, width = inside.shape[1:]
        return result.view(batch, -1, width)[:, self.margin : self.margin + n_frames]


def _by_tap(weight: Tensor) -> Tensor:
    """Returns a weight (O, C, K) as (K C, O)."""
    return weight.permute(2, 1, 0).reshape(-1, weight.shape[0])
