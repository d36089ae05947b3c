"""A model's weights as named float32 arrays, as one flat vector, and as a digest.

Guarantees:
  - The order of the tensors is the model's own and is kept everywhere.
  - Equal names, shapes and bits have an equal digest; any other bit, name, shape or order another one.
  - Flattening and unflattening change no bit.

>>> weights = {"layer.weight": np.ones((2, 3), np.float32), "layer.bias": np.zeros(2, np.float32)}
>>> layout = Layout.of(weights)
>>> layout.size, layout.names
(8, ('layer.weight', 'layer.bias'))
>>> digest(layout.unflatten(layout.flatten(weights))) == digest(weights)
True
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's tensors, in order. All of them are float32."""

    entries: tuple[tuple[str, Shape], ...]

    @staticmethod
    def of(weights: Weights) -> "Layout":
        """Reads the layout off weights.

        Raises:
            TypeError: a tensor is not float32. A counter or an index cannot be averaged, and a model that has
                one (batch normalisation) is not one of ours.
        """
        for name, array in weights.items():
            if array.dtype != np.float32:
                raise TypeError(f"Expected float32 weights; {name!r} is {array.dtype}.")
        return Layout(tuple((name, array.shape) for name, array in weights.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names in order."""
        return tuple(name for name, _ in self.entries)

    @property
    def size(self) -> int:
        """Returns how many numbers there are in all."""
        return self.spans[-1][2].stop if self.spans else 0

    @cached_property
    def spans(self) -> tuple[tuple[str, Shape, slice], ...]:
        """Returns each tensor with its place in the flat vector."""
        stops = list(accumulate((math.prod(shape) for _, shape in self.entries), initial=0))
        spans = zip(self.entries, stops[:-1], stops[1:], strict=True)
        return tuple((name, shape, slice(start, stop)) for (name, shape), start, stop in spans)

    def flatten(self, weights: Weights) -> Array:
        """Returns a new flat vector."""
        flat = np.empty(self.size, np.float32)
        for name, shape, span in self.spans:
            flat[span].reshape(shape)[...] = weights[name]
        return flat

    def unflatten(self, flat: Array) -> dict[str, Array]:
        """Returns views of a flat vector, one for each tensor."""
        if flat.shape != (self.size,):
            raise ValueError(f"Expected a vector of {self.size} numbers; came shape {flat.shape}.")
        return {name: flat[span].reshape(shape) for name, shape, span in self.spans}


class ModelWeights:
    """A model's tensors, to be written and copied many times: what does not change is looked up once.

    The model must stay on its device, and go on using the same tensors (`client/train.py` does).
    """

    def __init__(self, model: "nn.Module") -> None:
        self._tensors = model.state_dict()
        self._views = {name: t.numpy() for name, t in self._tensors.items() if t.is_cpu}
        self._layout = Layout.of({name: t.cpu().numpy() for name, t in self._tensors.items()})

    @property
    def layout(self) -> Layout:
        """Returns names and shapes of the model's tensors."""
        return self._layout

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the model's tensors, in its own order."""
        return self._layout.names

    def write(self, weights: Weights) -> None:
        """Writes weights into the model.

        Raises:
            KeyError: a tensor is missing.
            ValueError, TypeError: one has another shape or dtype.
        """
        for name, shape in self._layout.entries:
            if weights[name].shape != shape:
                raise ValueError(f"Expected {name!r} of shape {shape}; came {weights[name].shape}.")
            if name in self._views:
                np.copyto(self._views[name], weights[name], casting="no")
            else:
                self._tensors[name].copy_(to_state_dict({name: weights[name]})[name])

    def copy(self) -> dict[str, Array]:
        """Copies the model's weights, as views of one new flat vector."""
        held = self._views or {name: tensor.cpu().numpy() for name, tensor in self._tensors.items()}
        return self._layout.unflatten(self._layout.flatten(held))


def from_state_dict(state_dict: "Mapping[str, Tensor]") -> dict[str, Array]:
    """Copies a model's tensors, as views of one new flat vector: the model may go on changing its own."""
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in state_dict.items()}
    layout = Layout.of(tensors)
    return layout.unflatten(layout.flatten(tensors))


def to_state_dict(weights: Weights) -> "dict[str, Tensor]":
    """Copies weights into tensors for `load_state_dict`."""
    import torch  # here, not above: a coordinator sums vectors and has no use for torch

    return {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}


def digest_beside(weights: Weights, beside: Weights | None) -> str:
    """Returns the digest of weights, and of a second set of the same names where there is one."""
    return digest(weights if beside is None else {**weights, **{f"beside/{n}": a for n, a in beside.items()}})


def digest(weights: Weights) -> str:
    """Returns SHA-256 over name, dtype, shape and little-endian bytes of each tensor, in order."""
    total = hashlib.sha256(b"sottovoce/weights/1\n")
    for name, array in weights.items():
        total.update(f"{name!r} {array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
        total.update(array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes())
    return total.hexdigest()
