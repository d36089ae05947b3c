"""Decision fusion: the branches' logits, averaged with learned weights."""

import torch
from torch import Tensor

from sottovoce.client.private.kernels.base import Kernel, Saved
from sottovoce.client.private.sink import Sink
from sottovoce.common.models.encoders import Inputs, Lengths
from sottovoce.common.models.fusion import DecisionFusion


class DecisionFusionKernel(Kernel):
    """The average alone; each branch's layers have kernels of their own."""

    def __init__(self, module: DecisionFusion, sink: Sink) -> None:
        super().__init__(module, sink)
        self.module = module

    def __call__(self, inputs: Inputs, lengths: Lengths) -> Tensor:  # type: ignore[override]
        """Stands in for the module's `forward`."""
        return super().__call__(
            torch.stack([branch(inputs, lengths) for branch in self.module.branches], dim=-1)
        )

    def forward(self, values: Tensor, *context: Tensor) -> tuple[Tensor, Saved]:
        shares = self.module.weights.detach().softmax(0)
        return values @ shares, (values, shares)

    def backward(self, gradient: Tensor, saved: Saved, *, wants_input: bool) -> Tensor | None:
        values, shares = saved
        slopes = (gradient[:, :, None] * values).sum(1)
        self.sink.total(self.module.weights, shares * (slopes - (slopes @ shares)[:, None]))
        return gradient[:, :, None] * shares if wants_input else None
