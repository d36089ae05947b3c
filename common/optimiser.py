"""SGD, Adam and AdamW on one flat vector: a step is a handful of vector operations, whatever the model.

Guarantees:
  - Each rule equals its namesake in torch.optim (tested over random steps).
  - When the `with` block ends, the model's tensors are the same objects as before, with the new values.

Own code because the first use of torch.optim imports the whole compiler, 2.7 s, and a simulation's first
round is due within 3 s of its start; and because a small model's step is otherwise spent in Python, tensor by
tensor.
"""

from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.common.study import Training
from sottovoce.common.weights import Weights

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba 2015, and torch's defaults


class FlatParameters:
    """A model's trainable parameters and gradients as two flat vectors, while the `with` block lasts."""

    def __init__(self, model: nn.Module) -> None:
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._homes = [p.data for p in self._parameters]

    def __enter__(self) -> "FlatParameters":
        self.values = torch.cat([home.reshape(-1) for home in self._homes])
        self.gradient = torch.zeros_like(self.values)
        offset = 0
        for parameter, home in zip(self._parameters, self._homes, strict=True):
            span = slice(offset, offset + home.numel())
            parameter.data = self.values[span].view(home.shape)
            parameter.grad = self.gradient[span].view(home.shape)  # autograd adds into it in place
            offset = span.stop
        return self

    def vector(self, named: Weights) -> Tensor:
        """Returns numbers that stand under the parameters' names as one vector beside `values`."""
        parts = [torch.from_numpy(np.array(named[name])).reshape(-1) for name in self._names]
        return torch.cat(parts).to(self.values.device)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for parameter, home in zip(self._parameters, self._homes, strict=True):
            home.copy_(parameter.data)
            parameter.data, parameter.grad = home, None


class Optimiser:
    """One update rule with its state; fresh each round."""

    def __init__(self, spec: Training, size_of: Tensor) -> None:
        self._spec = spec
        self._steps = 0
        self._first = torch.zeros_like(size_of)
        self._second = torch.zeros_like(size_of)

    def step(self, values: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Changes `values` in place; `gradient` may be changed too."""
        self._steps += 1
        decay = self._spec.weight_decay
        if self._spec.optimiser == "adamw":
            values.mul_(1.0 - learning_rate * decay)
        elif decay:
            gradient.add_(values, alpha=decay)
        if self._spec.optimiser == "sgd":
            values.sub_(self._with_momentum(gradient), alpha=learning_rate)
        else:
            self._adam(values, gradient, learning_rate)

    def _with_momentum(self, gradient: Tensor) -> Tensor:
        if not self._spec.momentum:
            return gradient
        return self._first.mul_(self._spec.momentum).add_(gradient)

    def _adam(self, values: Tensor, gradient: Tensor, learning_rate: float) -> None:
        self._first.lerp_(gradient, 1.0 - BETA1)
        self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
        unbiased1 = 1.0 - BETA1**self._steps
        unbiased2 = 1.0 - BETA2**self._steps
        root = self._second.sqrt().div_(unbiased2**0.5).add_(EPSILON)
        values.addcdiv_(self._first, root, value=-learning_rate / unbiased1)
