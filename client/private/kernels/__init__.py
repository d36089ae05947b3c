"""One kernel for each layer that `common.models` is made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sottovoce.client.private.kernels.base import Kernel
from sottovoce.client.private.kernels.conv import ConvKernel
from sottovoce.client.private.kernels.fusion import DecisionFusionKernel
from sottovoce.client.private.kernels.linear import LinearKernel
from sottovoce.client.private.kernels.norm import LayerNormKernel
from sottovoce.client.private.kernels.recurrent import LstmKernel, RnnKernel
from sottovoce.client.private.sink import Sink
from sottovoce.common.models.fusion import DecisionFusion
from sottovoce.common.models.layers import Recurrent

KernelOf = Callable[[Any, Sink], Kernel]
KERNELS: dict[type[nn.Module], KernelOf] = {
    nn.Linear: LinearKernel,
    nn.Conv1d: ConvKernel,
    nn.LayerNorm: LayerNormKernel,
}


def kernel_of(module: nn.Module) -> KernelOf | None:
    """Returns the kernel of a module; None where none knows it. By exact type: a subclass may compute otherwise."""
    kind = type_before_parametrizations(module)
    if kind is Recurrent:
        return LstmKernel if isinstance(module.onward, nn.LSTM) else RnnKernel
    return KERNELS.get(kind)


def trained_layers(model: nn.Module) -> dict[nn.Module, KernelOf]:
    """Returns the modules that hold trained parameters, with their kernels.

    Raises:
        ValueError: a parameter is trained whose layer has no kernel.
    """
    found: dict[nn.Module, KernelOf] = {}
    _collect(model, found)
    return found


@contextmanager
def standing_in(layers: dict[nn.Module, KernelOf], sink: Sink) -> Iterator[None]:
    """Puts kernels in the place of the layers' `forward`, on the instances, and takes them away again."""
    try:
        for layer, kernel in layers.items():
            layer.forward = kernel(layer, sink)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _collect(module: nn.Module, found: dict[nn.Module, KernelOf]) -> None:
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    kernel = kernel_of(module)
    if kernel is not None:
        found[module] = kernel
        return
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        if type(module) is not DecisionFusion:
            raise ValueError(
                f"Expected trained layers among {', '.join(kind.__name__ for kind in (*KERNELS, Recurrent))}; "
                f"came {type(module).__name__}. Freeze it, or write a kernel for it in client/private/kernels."
            )
        found[module] = DecisionFusionKernel  # of its own weights alone
    for child in module.children():
        _collect(child, found)
