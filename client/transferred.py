"""How a study's transfer changes the steps of training at a site, private or not.

    with head_alone(model, study.transfer):                        # feature transfer: the body stands still
        with FlatParameters(model) as flat:
            optimiser = stepping(Optimiser(spec, flat.values), model, flat, anchored(study, model))

Guarantees:
  - Feature transfer: the body's tensors are not touched, to the bit; no gradient of them is ever computed.
  - Parameter transfer: a weight d layers below the head moves `layer_rate_decay` to the d-th of what the study's
    optimiser would move it; `pull` * (weight - initial weight) is added to the gradient of each weight that came from
    the file. Both are of public numbers alone: after private gradients they are post-processing.
  - Without a transfer, and in model transfer, steps are the optimiser's own, to the bit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.client.private.trainable import freeze_all_but
from sottovoce.common.models.depths import depths
from sottovoce.common.optimiser import FlatParameters
from sottovoce.common.study import Study
from sottovoce.common.transfer import HEAD, taken
from sottovoce.common.transfer_specs import FeatureTransfer, ParameterTransfer, Transfer
from sottovoce.common.weights import Array, from_state_dict


class Stepping(Protocol):
    """Something that takes a step."""

    def step(self, values: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Changes `values` in place; `gradient` may be changed too."""


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """A parameter transfer with the tensors that came from the file."""

    spec: ParameterTransfer
    anchors: Mapping[str, Array]


def anchored(study: Study, model: nn.Module) -> Anchored | None:
    """Returns what the steps of a parameter transfer need; None for every other study.

    Raises:
        WeightsError: the initial file is not on this machine, or is not the study's.
    """
    if not isinstance(study.transfer, ParameterTransfer):
        return None
    return Anchored(spec=study.transfer, anchors=taken(study, from_state_dict(model.state_dict())))


@contextmanager
def head_alone(model: nn.Module, transfer: Transfer | None) -> Iterator[None]:
    """Trains nothing but heads while the block lasts, where the study says so."""
    if not isinstance(transfer, FeatureTransfer):
        yield
        return
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    freeze_all_but(model, (HEAD,))
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def stepping(
    optimiser: Stepping, model: nn.Module, flat: FlatParameters, transfer: Anchored | None
) -> Stepping:
    """Returns the optimiser, or one that moves lower layers less and pulls to where the weights came from."""
    if transfer is None:
        return optimiser
    ones = {name: np.ones(tuple(p.shape), np.float32) for name, p in model.named_parameters()}
    below = depths(model)
    decay, pull = transfer.spec.layer_rate_decay, transfer.spec.pull
    return _Gentle(
        optimiser,
        rates=flat.vector({name: decay ** below[name] * one for name, one in ones.items()}),
        pulls=flat.vector(
            {name: (pull if name in transfer.anchors else 0.0) * one for name, one in ones.items()}
        ),
        anchor=flat.vector({name: transfer.anchors.get(name, 0.0 * one) for name, one in ones.items()}),
    )


class _Gentle:
    """Steps of a parameter transfer. Every rule of ours moves weights in proportion to its rate, weight decay too:

    so a share of its step is the step at that share of the rate.
    """

    def __init__(self, optimiser: Stepping, *, rates: Tensor, pulls: Tensor, anchor: Tensor) -> None:
        self._optimiser, self._rates, self._pulls, self._anchor = optimiser, rates, pulls, anchor

    def step(self, values: Tensor, gradient: Tensor, learning_rate: float) -> None:
        gradient.addcmul_(self._pulls, values - self._anchor)
        before = values.clone()
        self._optimiser.step(values, gradient, learning_rate)
        values.copy_(torch.lerp(before, values, self._rates))
