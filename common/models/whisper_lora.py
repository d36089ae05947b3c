"""The last blocks of a frozen Whisper encoder with trained adapters of low rank (Hu et al. 2021).

Guarantees:
  - The module's parameters, and so its gradients, its state and what travels, are the adapters alone.
  - Before the first step the vectors are those of the frozen encoder: what an adapter adds starts at zero.
  - No recording's result or gradient depends on another one, nor on how far it is padded.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sottovoce.common.encoders import whisper_network
from sottovoce.common.model_specs import WhisperLora
from sottovoce.common.models.layers import blank_padding, masked_mean_deviation, valid_frames


class Adapter(nn.Module):
    """What is added to a block's queries and values; nothing to its keys."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.query_down, self.query_up = _down(width, rank), _up(width, rank)
        self.value_down, self.value_up = _down(width, rank), _up(width, rank)

    def forward(self, normed: Tensor) -> Tensor:
        query, value = self.query_up(self.query_down(normed)), self.value_up(self.value_down(normed))
        return torch.cat([query, torch.zeros_like(query), value], dim=-1)


def _down(width: int, rank: int) -> nn.Linear:
    layer = nn.Linear(width, rank, bias=False)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(width))
    return layer


def _up(width: int, rank: int) -> nn.Linear:
    layer = nn.Linear(rank, width, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


class AdaptedBlocks(nn.Module):
    """From a layer of Whisper's encoder to mean and deviation of its last one, each scaled to one size.

    The frozen weights are looked up with the first recordings, not held: a coordinator, which sees none, needs none.
    """

    def __init__(self, spec: WhisperLora, width: int) -> None:
        super().__init__()
        self._spec, self._width = spec, width
        self.adapters = nn.ModuleList(Adapter(width, spec.rank) for _ in range(spec.blocks))
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        frozen, values = self._frozen(values), blank_padding(values, lengths)
        mask = valid_frames(lengths, values.shape[1])[:, None, None, :]
        for block, adapter in zip(frozen.blocks[self._spec.layer :], self.adapters, strict=True):
            values = block(values, mask, adapter)
        # Both as long as the root of their width, whatever the encoder's scale: no figure of other recordings.
        pooled = masked_mean_deviation(frozen.norm(values), lengths).view(-1, 2, self._width)
        scaled: Tensor = self.dropout(functional.layer_norm(pooled, (self._width,)).flatten(1))
        return scaled

    def _frozen(self, values: Tensor) -> whisper_network.WhisperEncoder:
        spec, like = self._spec, (values.dtype, values.device)
        which = (spec.sha256, self._width, spec.layer + spec.blocks)
        if like == (torch.float32, torch.device("cpu")):
            return whisper_network.load(*which)
        return whisper_network.load_as(*which, like)
