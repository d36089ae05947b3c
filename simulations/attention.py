"""Which moments a network attends to: the weights of its attention, read while it answers.

    with watched(model) as maps:
        model(batch.inputs, batch.lengths)
    maps[-1].weights, maps[-1].lengths   # (recordings, steps), and how many steps are valid

Guarantees:
  - The weights of a recording are those that the network computed with: they add up to 1 over its valid steps.
  - Watching changes no answer, and nothing of it stays behind.

Attention pooling has one weight for each step. In a Transformer every step attends to all: a moment's weight is how
much it is attended to by all steps and heads of the last layer, on average.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sottovoce.common.metrics import Floats
from sottovoce.common.models.layers import AttentionPooling, SelfAttentionBlock, valid_frames


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Weights (recordings, steps) and the number of valid steps of each recording."""

    weights: Tensor
    lengths: Tensor


@contextmanager
def watched(model: nn.Module) -> Iterator[list[AttentionMap]]:
    """Yields a list that grows by one map whenever a layer with attention answers; the last layer's comes last."""
    maps: list[AttentionMap] = []

    def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        values, lengths = inputs
        weights = _of_pooling if isinstance(layer, AttentionPooling) else _of_block
        maps.append(AttentionMap(weights(layer, values.detach(), lengths), lengths))  # type: ignore[arg-type]

    with ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, AttentionPooling | SelfAttentionBlock):
                hooks.callback(layer.register_forward_hook(see).remove)
        yield maps


def _of_pooling(layer: AttentionPooling, values: Tensor, lengths: Tensor) -> Tensor:
    scores: Tensor = layer.score(values)[:, :, 0]
    return scores.masked_fill(~valid_frames(lengths, values.shape[1]), -math.inf).softmax(dim=1)


def _of_block(layer: SelfAttentionBlock, values: Tensor, lengths: Tensor) -> Tensor:
    n_recordings, n_steps, _ = values.shape
    mixed = layer.query_key_value(layer.norm_attention(values))
    query, key, _ = mixed.view(n_recordings, n_steps, 3, layer.heads, -1).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    valid = valid_frames(lengths, n_steps)
    weights = scores.masked_fill(~valid[:, None, None, :], -math.inf).softmax(dim=-1).mean(dim=1)
    asked: Tensor = (weights * valid[:, :, None]).sum(dim=1) / lengths[:, None]
    return asked


def curve(weights: Floats, n_valid: int, n_bins: int = 20) -> Floats:
    """Returns how a recording's weight is spread over parts of equal length; 1 is an even share.

    A step that lies in two parts gives each its part.

    >>> curve(np.array([0.5, 0.25, 0.25, 0.0]), 3, n_bins=3).round(2).tolist()
    [1.5, 0.75, 0.75]
    """
    reached = np.concatenate([[0.0], np.cumsum(weights[:n_valid])])
    if reached[-1] <= 0.0:
        return np.ones(n_bins)
    at = np.interp(np.linspace(0.0, n_valid, n_bins + 1), np.arange(n_valid + 1), reached / reached[-1])
    return np.asarray(np.diff(at) * n_bins)


def attention_of(
    model: nn.Module, inputs: dict[str, Tensor], lengths: dict[str, Tensor]
) -> AttentionMap | None:
    """Returns the map of the model's last layer with attention; None where it has none."""
    with watched(model) as maps, torch.inference_mode():
        model(inputs, lengths)
    return maps[-1] if maps else None
