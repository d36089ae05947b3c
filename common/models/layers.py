"""Small layers that treat every recording of a batch alone.

Guarantees:
  - No recording's result or gradient depends on another recording, on its length, or on how far it is padded.
  - What stands in the padding of an input is never read.

So there is no BatchNorm and no normalisation over time: GroupNorm over a padded batch changes a gradient by
30-116 % with the batch-mates' lengths (notes, DESIGN section 4).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def valid_frames(lengths: Tensor, n_frames: int) -> Tensor:
    """Returns a mask (B, T): true where a frame is inside its recording."""
    return torch.arange(n_frames, device=lengths.device)[None, :] < lengths[:, None]


def strided(lengths: Tensor, stride: int) -> Tensor:
    """Returns the lengths after a stride: a step counts if it holds at least one valid frame."""
    return torch.div(lengths + stride - 1, stride, rounding_mode="floor")


def blank_padding(values: Tensor, lengths: Tensor) -> Tensor:
    """Returns values (B, T, D) with zeros in the padding, whatever stood there (even NaN)."""
    return values.masked_fill(~valid_frames(lengths, values.shape[1])[:, :, None], 0.0)


def masked_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Returns the mean over valid frames, (B, D)."""
    return blank_padding(values, lengths).sum(1) / lengths[:, None]


def masked_mean_deviation(values: Tensor, lengths: Tensor) -> Tensor:
    """Returns mean and standard deviation over valid frames side by side, (B, 2 D)."""
    mean = masked_mean(values, lengths)
    variance = masked_mean((values - mean[:, None, :]).square(), lengths)
    # The root has no slope at zero: a recording of one frame would make the gradient infinite.
    return torch.cat([mean, (variance + 1e-4).sqrt()], dim=1)


class FrameAverage(nn.Module):
    """Averages `stride` neighbouring valid frames into one step: a shorter sequence, no parameters."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        values = blank_padding(values, lengths)
        if self.stride == 1:
            return values, lengths
        batch, n_frames, width = values.shape
        n_steps = -(-n_frames // self.stride)
        values = functional.pad(values, (0, 0, 0, n_steps * self.stride - n_frames))
        sums = values.view(batch, n_steps, self.stride, width).sum(2)
        starts = torch.arange(n_steps, device=lengths.device) * self.stride
        counts = (lengths[:, None] - starts[None, :]).clamp(1, self.stride)
        return sums / counts[:, :, None], strided(lengths, self.stride)


class ConvStack(nn.Module):
    """Convolutions over time, each with stride 2, normalised over channels within a frame."""

    def __init__(self, width: int, channels: tuple[int, ...], kernel: int, dropout: float) -> None:
        super().__init__()
        ins = (width, *channels[:-1])
        self.convs = nn.ModuleList(
            nn.Conv1d(i, o, kernel, stride=2, padding=kernel // 2) for i, o in zip(ins, channels, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(o) for o in channels)
        self.dropout = nn.Dropout(dropout)
        self.width = channels[-1]

    def layers(self) -> list[list[nn.Module]]:
        """Returns each convolution with its normalisation, the last one first."""
        return [[conv, norm] for conv, norm in zip(self.convs, self.norms, strict=True)][::-1]

    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            # The convolution's own zero padding and a blanked tail are alike: nothing sees where T ends.
            values = conv(blank_padding(values, lengths).transpose(1, 2)).transpose(1, 2)
            lengths = strided(lengths, 2)
            values = self.dropout(functional.relu(norm(values)))
        return values, lengths


class Recurrent(nn.Module):
    """An RNN or LSTM over valid frames, forwards or both ways.

    The backward direction runs forwards over each recording turned around within its own length. So padding
    always comes after the last valid frame, in both directions, and reaches none.
    """

    def __init__(
        self, cell: type[nn.RNN] | type[nn.LSTM], width: int, hidden: int, bidirectional: bool
    ) -> None:
        super().__init__()
        self.onward = cell(width, hidden, batch_first=True)
        self.backward_ = cell(width, hidden, batch_first=True) if bidirectional else None
        self.width = hidden * (2 if bidirectional else 1)
        if cell is nn.LSTM:
            for name, parameter in self.named_parameters():
                if name.endswith("bias_ih_l0"):  # forget gates start open (Jozefowicz et al. 2015)
                    parameter.data[hidden : 2 * hidden] = 1.0

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        onward, _ = self.onward(values)
        if self.backward_ is None:
            return onward  # type: ignore[no-any-return]
        turn = turned(lengths, values.shape[1])
        back, _ = self.backward_(_take_frames(values, turn))
        return torch.cat([onward, _take_frames(back, turn)], dim=2)


def turned(lengths: Tensor, n_frames: int) -> Tensor:
    """Returns frame numbers (B, T) that turn each recording around and leave its padding where it is."""
    frames = torch.arange(n_frames, device=lengths.device)[None, :]
    return torch.where(frames < lengths[:, None], lengths[:, None] - 1 - frames, frames)


def _take_frames(values: Tensor, frames: Tensor) -> Tensor:
    return values.gather(1, frames[:, :, None].expand(-1, -1, values.shape[2]))


class AttentionPooling(nn.Module):
    """A weighted mean over valid frames; a small network gives each frame its weight."""

    def __init__(self, width: int, hidden: int = 32) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        scores = self.score(values)[:, :, 0].masked_fill(~valid_frames(lengths, values.shape[1]), -math.inf)
        weights = scores.softmax(dim=1)[:, :, None]
        return (weights * blank_padding(values, lengths)).sum(1)  # type: ignore[no-any-return]


class SelfAttentionBlock(nn.Module):
    """One pre-norm Transformer encoder layer; keys in the padding are masked."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        batch, n_frames, width = values.shape
        mixed = self.query_key_value(self.norm_attention(values))
        query, key, value = mixed.view(batch, n_frames, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = valid_frames(lengths, n_frames)[:, None, None, :]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        values = values + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, n_frames, width)))
        return values + self.dropout(self.feed(self.norm_feed(values)))  # type: ignore[no-any-return]


def sinusoids(n_frames: int, width: int, like: Tensor) -> Tensor:
    """Returns position codes (T, width), as in Vaswani et al. 2017."""
    positions = torch.arange(n_frames, dtype=like.dtype, device=like.device)[:, None]
    columns = torch.arange(width, dtype=like.dtype, device=like.device)[None, :]
    angles = positions * torch.exp(-math.log(10_000.0) / width * (columns - columns % 2))
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos())
