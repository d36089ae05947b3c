"""Integrated gradients by captum: how much each number of a recording spoke for its emotion. captum's one door.

    attributions = integrated_gradients(model, batch, baseline)

Guarantees:
  - Attributions add up to the log probability of the emotion minus that of the baseline, up to the steps' rounding.
  - The same arguments give the same bits: there is no chance in it.
  - The padding of a sequence gets exactly nothing.

Sundararajan, Taly and Yan 2017.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.common.dataset import Batch
from sottovoce.common.errors import SottovoceError
from sottovoce.common.models.layers import valid_frames

STEPS = 32
AT_ONCE = 64  # recordings times steps in one pass


def integrated_gradients(
    model: nn.Module, batch: Batch, baseline: Mapping[str, Tensor], *, steps: int = STEPS
) -> dict[str, Tensor]:
    """Returns, for each stream, attributions to the log probability of each recording's own label.

    `baseline` has one row of columns for each stream: what says nothing. It stands in every valid frame.

    Raises:
        SottovoceError: captum is not installed.
    """
    method = _captum().IntegratedGradients(_LogProbabilities(model, tuple(batch.inputs), batch.lengths))
    masks = {name: _mask(batch, name) for name in batch.inputs}
    starts = tuple(baseline[name].expand_as(values) * masks[name] for name, values in batch.inputs.items())
    found = method.attribute(
        tuple(batch.inputs.values()),
        baselines=starts,
        target=batch.labels,
        additional_forward_args=tuple(batch.lengths.values()),
        n_steps=steps,
        method="gausslegendre",
        internal_batch_size=max(AT_ONCE, len(batch.labels)),
    )
    return {name: (values * masks[name]).detach() for name, values in zip(batch.inputs, found, strict=True)}


class _LogProbabilities(nn.Module):
    """A model of tensors in order, as captum calls it."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], lengths: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.names, self.timed = model, names, tuple(lengths)

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs = dict(zip(self.names, tensors, strict=False))
        lengths = dict(zip(self.timed, tensors[len(self.names) :], strict=True))
        logits: Tensor = self.model(inputs, lengths)
        return logits.log_softmax(dim=1)


def _mask(batch: Batch, name: str) -> Tensor:
    values = batch.inputs[name]
    if name not in batch.lengths:
        return torch.ones_like(values)
    return valid_frames(batch.lengths[name], values.shape[1])[:, :, None].to(values.dtype)


def _captum() -> Any:
    try:
        from captum import attr
    except ImportError:
        raise SottovoceError(
            "Expected captum, which explains networks; it is not installed. Install it with: "
            "pip install 'sottovoce[explain]'"
        ) from None
    return attr
