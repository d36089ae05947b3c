"""From one stream of a batch to one vector a recording: one small encoder for each kind of branch."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from sottovoce.common.model_specs import (
    Attention,
    Branch,
    Cnn,
    CnnLstmAttention,
    Linear,
    Lstm,
    Mlp,
    Rnn,
    WhisperLora,
)
from sottovoce.common.models.layers import (
    AttentionPooling,
    ConvStack,
    FrameAverage,
    Recurrent,
    SelfAttentionBlock,
    blank_padding,
    masked_mean,
    masked_mean_deviation,
    sinusoids,
)
from sottovoce.common.models.whisper_lora import AdaptedBlocks

Inputs = Mapping[str, Tensor]
Lengths = Mapping[str, Tensor]
Layers = list[list[nn.Module]]


class Encoder(nn.Module):
    """One vector of `width` numbers for each recording, from the stream named `stream`."""

    def __init__(self, stream: str, width: int) -> None:
        super().__init__()
        self.stream, self.width = stream, width

    def layers(self) -> Layers:
        """Returns what learns together, from the classifier's side down to the features."""
        return []

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        raise NotImplementedError


class SequenceEncoder(Encoder):
    """An encoder of a sequence: a vector for each step of `frames_per_step` frames, then one for the recording."""

    frames_per_step: int

    def steps(self, inputs: Inputs, lengths: Lengths) -> tuple[Tensor, Tensor]:
        """Returns the vectors before pooling, (B, S, ...), and how many of them are valid, (B,)."""
        raise NotImplementedError


def encoder(spec: Branch, widths: Mapping[str, int]) -> Encoder:
    """Returns the encoder of a branch; `widths` are the columns of each stream."""
    width = widths[spec.stream]
    match spec:
        case Linear():
            return AsIs(spec.stream, width)
        case Mlp():
            return HiddenLayer(spec, width)
        case Cnn():
            return Convolutions(spec, width)
        case Rnn():
            return PlainRecurrence(spec, width)
        case Lstm():
            return LongShortTermMemory(spec, width)
        case Attention():
            return SelfAttention(spec, width)
        case CnnLstmAttention():
            return ConvolutionsThenMemory(spec, width)
        case WhisperLora():
            return AdaptedWhisper(spec, width)


class AsIs(Encoder):
    """A pooled stream as it is: with a linear head, softmax regression."""

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        return inputs[self.stream]


class HiddenLayer(Encoder):
    """One hidden layer on a pooled stream."""

    def __init__(self, spec: Mlp, width: int) -> None:
        super().__init__(spec.stream, spec.hidden)
        self.hidden, self.dropout = nn.Linear(width, spec.hidden), nn.Dropout(spec.dropout)

    def layers(self) -> Layers:
        return [[self.hidden]]

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        hidden: Tensor = self.dropout(functional.relu(self.hidden(self.dropout(inputs[self.stream]))))
        return hidden


class Convolutions(SequenceEncoder):
    """Strided convolutions, then mean and deviation over time."""

    def __init__(self, spec: Cnn, width: int) -> None:
        super().__init__(spec.stream, 2 * spec.channels[-1])
        self.average = FrameAverage(spec.stride)
        self.convs = ConvStack(width, spec.channels, spec.kernel, spec.dropout)
        self.frames_per_step = spec.stride * 2 ** len(spec.channels)

    def steps(self, inputs: Inputs, lengths: Lengths) -> tuple[Tensor, Tensor]:
        values, n_steps = self.convs(*self.average(inputs[self.stream], lengths[self.stream]))
        return values, n_steps

    def layers(self) -> Layers:
        return self.convs.layers()

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        return masked_mean_deviation(*self.steps(inputs, lengths))


class PlainRecurrence(SequenceEncoder):
    """A tanh recurrence, then the mean over time."""

    def __init__(self, spec: Rnn, width: int) -> None:
        super().__init__(spec.stream, spec.hidden * (2 if spec.bidirectional else 1))
        self.average, self.dropout = FrameAverage(spec.stride), nn.Dropout(spec.dropout)
        self.recurrent = Recurrent(nn.RNN, width, spec.hidden, spec.bidirectional)
        self.frames_per_step = spec.stride

    def steps(self, inputs: Inputs, lengths: Lengths) -> tuple[Tensor, Tensor]:
        values, n_steps = self.average(inputs[self.stream], lengths[self.stream])
        return self.recurrent(values, n_steps), n_steps

    def layers(self) -> Layers:
        return [[self.recurrent]]

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        pooled: Tensor = self.dropout(masked_mean(*self.steps(inputs, lengths)))
        return pooled


class LongShortTermMemory(SequenceEncoder):
    """An LSTM, then attention or the mean over time."""

    def __init__(self, spec: Lstm, width: int) -> None:
        super().__init__(spec.stream, spec.hidden * (2 if spec.bidirectional else 1))
        self.average, self.dropout = FrameAverage(spec.stride), nn.Dropout(spec.dropout)
        self.recurrent = Recurrent(nn.LSTM, width, spec.hidden, spec.bidirectional)
        self.pooling = AttentionPooling(self.width) if spec.pooling == "attention" else None
        self.frames_per_step = spec.stride

    def steps(self, inputs: Inputs, lengths: Lengths) -> tuple[Tensor, Tensor]:
        values, n_steps = self.average(inputs[self.stream], lengths[self.stream])
        return self.recurrent(self.dropout(values), n_steps), n_steps

    def layers(self) -> Layers:
        layers: Layers = [[self.recurrent]]
        return layers if self.pooling is None else [[self.pooling], *layers]

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        values, n_steps = self.steps(inputs, lengths)
        pooled = masked_mean(values, n_steps) if self.pooling is None else self.pooling(values, n_steps)
        return self.dropout(pooled)  # type: ignore[no-any-return]


class SelfAttention(SequenceEncoder):
    """A Transformer encoder, then the mean over time."""

    def __init__(self, spec: Attention, width: int) -> None:
        super().__init__(spec.stream, spec.width)
        self.average, self.dropout = FrameAverage(spec.stride), nn.Dropout(spec.dropout)
        self.entry = nn.Linear(width, spec.width)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(spec.width, spec.heads, spec.dropout) for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(spec.width)
        self.frames_per_step = spec.stride

    def steps(self, inputs: Inputs, lengths: Lengths) -> tuple[Tensor, Tensor]:
        values, n_steps = self.average(inputs[self.stream], lengths[self.stream])
        values = self.entry(values)
        values = self.dropout(values + sinusoids(values.shape[1], self.width, values))
        for block in self.blocks:
            values = block(values, n_steps)
        return self.norm(values), n_steps

    def layers(self) -> Layers:
        *lower, top = self.blocks
        return [[self.norm, top], *([block] for block in reversed(lower)), [self.entry]]

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        return masked_mean(*self.steps(inputs, lengths))


class ConvolutionsThenMemory(SequenceEncoder):
    """Strided convolutions, a bidirectional LSTM, attention over time."""

    def __init__(self, spec: CnnLstmAttention, width: int) -> None:
        super().__init__(spec.stream, 2 * spec.hidden)
        self.average = FrameAverage(spec.stride)
        self.convs = ConvStack(width, spec.channels, spec.kernel, spec.dropout)
        self.recurrent = Recurrent(nn.LSTM, self.convs.width, spec.hidden, bidirectional=True)
        self.pooling, self.dropout = AttentionPooling(self.width), nn.Dropout(spec.dropout)
        self.frames_per_step = spec.stride * 2 ** len(spec.channels)

    def steps(self, inputs: Inputs, lengths: Lengths) -> tuple[Tensor, Tensor]:
        values, n_steps = self.convs(*self.average(inputs[self.stream], lengths[self.stream]))
        return self.recurrent(blank_padding(values, n_steps), n_steps), n_steps

    def layers(self) -> Layers:
        return [[self.pooling], [self.recurrent], *self.convs.layers()]

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        return self.dropout(self.pooling(*self.steps(inputs, lengths)))  # type: ignore[no-any-return]


class AdaptedWhisper(Encoder):
    """Frozen blocks of Whisper with adapters, mean and deviation over time."""

    def __init__(self, spec: WhisperLora, width: int) -> None:
        super().__init__(spec.stream, 2 * width)
        self.adapted = AdaptedBlocks(spec, width)

    def forward(self, inputs: Inputs, lengths: Lengths) -> Tensor:
        pooled: Tensor = self.adapted(inputs[self.stream], lengths[self.stream])
        return pooled
