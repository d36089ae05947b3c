"""Layer normalisation over the last axis of (B, D) or (B, T, D)."""

import torch
from torch import Tensor, nn

from sottovoce.client.private.kernels.base import Kernel, Saved
from sottovoce.client.private.sink import Sink


class LayerNormKernel(Kernel):
    """y = z w + b with z the normalised input; a row's gradient of w is the sum over steps of dy z."""

    def __init__(self, module: nn.LayerNorm, sink: Sink) -> None:
        super().__init__(module, sink)
        if len(module.normalized_shape) != 1:
            raise ValueError(
                f"Expected a LayerNorm over one axis; came normalized_shape={module.normalized_shape}."
            )
        self.module = module

    def forward(self, values: Tensor, *context: Tensor) -> tuple[Tensor, Saved]:
        layer = self.module
        values = values.contiguous()
        output, mean, scale = torch.native_layer_norm(
            values, layer.normalized_shape, layer.weight, layer.bias, layer.eps
        )
        return output, (values, mean, scale)

    def backward(self, gradient: Tensor, saved: Saved, *, wants_input: bool) -> Tensor | None:
        values, mean, scale = saved
        layer = self.module
        gradient = gradient.contiguous()
        steps = (gradient.shape[0], -1, gradient.shape[-1])
        if self.sink.wants(layer.weight):
            products = (values - mean).mul_(scale).mul_(gradient)
            self.sink.total(layer.weight, products.view(steps).sum(1))
        if self.sink.wants(layer.bias):
            self.sink.total(layer.bias, gradient.view(steps).sum(1))
        if not wants_input:
            return None
        result: Tensor = torch.ops.aten.native_layer_norm_backward(
            gradient,
            values,
            layer.normalized_shape,
            mean,
            scale,
            layer.weight,
            layer.bias,
            [True, False, False],
        )[0]
        return result
