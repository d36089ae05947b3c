"""Linear layers over (B, I) or (B, T, I)."""

from torch import Tensor, nn
from torch.nn import functional

from sottovoce.client.private.kernels.base import Kernel, Saved, Weight
from sottovoce.client.private.sink import Sink


class LinearKernel(Kernel):
    """y = x W' + b; a row's gradient of W is the sum over steps of dy' x."""

    def __init__(self, module: nn.Linear, sink: Sink) -> None:
        super().__init__(module, sink)
        self.weight, self.bias = Weight(module, "weight"), module.bias

    def forward(self, values: Tensor, *context: Tensor) -> tuple[Tensor, Saved]:
        weight = self.weight.value()
        return functional.linear(values, weight, self.bias), (values, weight)

    def backward(self, gradient: Tensor, saved: Saved, *, wants_input: bool) -> Tensor | None:
        values, weight = saved
        steps = gradient if gradient.dim() == 3 else gradient[:, None]
        self.weight.write(self.sink, steps, values if values.dim() == 3 else values[:, None])
        self.sink.total(self.bias, steps.sum(1))
        return gradient @ weight if wants_input else None
