"""What a layer's kernel is: a forward pass, and a backward pass that writes patients' gradients on its way.

A kernel stands in for one module's `forward` during one step. autograd still runs the backward pass: a kernel
returns the gradient of its input, and of its parameters nothing, so no summed gradient is ever computed.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sottovoce.client.private.lowrank import LowRank, parts
from sottovoce.client.private.sink import Sink

Saved = tuple[Tensor, ...]


class Kernel(ABC):
    """One module, for one step. `anchor` is any of its trained parameters."""

    def __init__(self, module: nn.Module, sink: Sink) -> None:
        self.sink = sink
        # autograd calls a function back only if some input wants a gradient; the layer's own input need not.
        self.anchor = next(parameter for parameter in module.parameters() if sink.wants(parameter))

    @abstractmethod
    def forward(self, values: Tensor, *context: Tensor) -> tuple[Tensor, Saved]:
        """Returns the module's output, and what `backward` will need."""

    @abstractmethod
    def backward(self, gradient: Tensor, saved: Saved, *, wants_input: bool) -> Tensor | None:
        """Writes the patients' gradients to the sink; returns that of the input."""

    def __call__(self, values: Tensor, *context: Tensor) -> Tensor:
        """Stands in for the module's `forward`."""
        output: Tensor = _Layer.apply(values, self.anchor, self, context)  # type: ignore[no-untyped-call]
        return output


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, anchor: Tensor, kernel: Kernel, context: tuple[Tensor, ...]
    ) -> Tensor:
        output, saved = kernel.forward(values, *context)
        ctx.kernel = kernel
        ctx.save_for_backward(*saved)  # freed by autograd as soon as the backward pass has gone by
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        result = ctx.kernel.backward(gradient, ctx.saved_tensors, wants_input=ctx.needs_input_grad[0])
        return result, None, None, None


class Weight:
    """A layer's weight as (out, in): its value, and where its gradient goes, all of it or in a low rank."""

    def __init__(self, module: nn.Module, name: str) -> None:
        adapter: LowRank | None
        self.full, adapter = parts(module, name)
        self.up = None if adapter is None else adapter.up
        self.down = None if adapter is None else adapter.down

    def value(self) -> Tensor:
        """Returns the weight in force, without a graph."""
        full = self.full.detach()
        if self.up is None or self.down is None:
            return full
        change = self.up.detach() @ self.down.detach()
        return full + change.view_as(full)

    def write(self, sink: Sink, left: Tensor, right: Tensor) -> None:
        """Writes the gradient for output gradients `left` (B, T, O) and inputs `right` (B, T, I)."""
        sink.product(self.full, left, right)
        if self.up is not None and self.down is not None:
            sink.product(self.up, left, right @ self.down.detach().t())
            sink.product(self.down, left @ self.up.detach(), right)
