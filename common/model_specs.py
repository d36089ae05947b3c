"""What model a study asks for: public constants, no tensors (those are in `models/`)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sottovoce.common.config import Interval
from sottovoce.common.feature_specs import WHISPER_TINY_EN, Sha256

Share = Annotated[float, Interval(0.0, 0.9)]
Width = Annotated[int, Interval(1, 1024)]
Stride = Annotated[int, Interval(1, 16)]  # so many neighbouring frames are averaged into one step


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Softmax regression on a pooled stream."""

    kind: Literal["linear"]
    stream: str


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """One hidden layer on a pooled stream."""

    kind: Literal["mlp"]
    stream: str
    hidden: Width = 64
    dropout: Share = 0.3


@dataclass(frozen=True, kw_only=True)
class Cnn:
    """Strided one-dimensional convolutions over time, masked mean and deviation."""

    kind: Literal["cnn"]
    stream: str
    channels: Annotated[tuple[Width, ...], Interval(1, 8)] = (64, 96)
    kernel: Annotated[int, Interval(1, 15)] = 5
    stride: Stride = 1
    dropout: Share = 0.3


@dataclass(frozen=True, kw_only=True)
class Rnn:
    """A plain (tanh) recurrent network, masked mean."""

    kind: Literal["rnn"]
    stream: str
    hidden: Width = 64
    bidirectional: bool = False
    stride: Stride = 4
    dropout: Share = 0.3


@dataclass(frozen=True, kw_only=True)
class Lstm:
    """A long short-term memory network over frames."""

    kind: Literal["lstm"]
    stream: str
    hidden: Width = 64
    bidirectional: bool = True
    pooling: Literal["mean", "attention"] = "attention"
    stride: Stride = 4
    dropout: Share = 0.3


@dataclass(frozen=True, kw_only=True)
class Attention:
    """A Transformer encoder over frames (pre-norm), masked mean."""

    kind: Literal["attention"]
    stream: str
    width: Width = 64
    heads: Annotated[int, Interval(1, 16)] = 4
    layers: Annotated[int, Interval(1, 12)] = 2
    stride: Stride = 4
    dropout: Share = 0.2


@dataclass(frozen=True, kw_only=True)
class CnnLstmAttention:
    """Convolutions, then a bidirectional LSTM, then attention pooling."""

    kind: Literal["cnn_lstm_attention"]
    stream: str
    channels: Annotated[tuple[Width, ...], Interval(1, 8)] = (64, 96)
    kernel: Annotated[int, Interval(1, 15)] = 5
    stride: Stride = 1
    hidden: Width = 64
    dropout: Share = 0.3


@dataclass(frozen=True, kw_only=True)
class WhisperLora:
    """The last blocks of Whisper's encoder, frozen, with trained adapters of low rank; mean and deviation over time.

    The stream has one layer of the same weights, as it is: `layers = [layer]`. The `blocks` after it run in the model,
    with adapters on queries and values (Hu et al. 2021); they must be the encoder's last. What travels is the adapters
    and the head, never the frozen weights: 18,440 numbers of 8 million, as it stands here, for 8 classes.
    """

    kind: Literal["whisper_lora"]
    stream: str
    sha256: Sha256 = WHISPER_TINY_EN
    layer: Annotated[int, Interval(0, 11)] = 2
    blocks: Annotated[int, Interval(1, 12)] = 2
    rank: Annotated[int, Interval(1, 64)] = 4
    dropout: Share = 0.1


@dataclass(frozen=True, kw_only=True)
class Discriminator:
    """What a hospital trains for a generator at the coordinator: how real a pooled row looks, class by class.

    A projection discriminator (Miyato and Koyama 2018). Two hidden layers; no dropout, as in private steps.
    `per_class` rows of each class are made in the end.
    """

    kind: Literal["discriminator"]
    stream: str
    hidden: Width = 64
    per_class: Annotated[int, Interval(1, 10_000)] = 100


@dataclass(frozen=True, kw_only=True)
class Moments:
    """No classifier: with loss `label_score`, one gradient step is each class's count, sums and sums of squares.

    Columns are cut to [-bound, bound] first: a public constant. From the sums follow Gaussians of each class.
    """

    kind: Literal["moments"]
    stream: str
    bound: Annotated[float, Interval(0.1, 100.0)] = 3.0
    per_class: Annotated[int, Interval(1, 10_000)] = 100


Branch = Linear | Mlp | Cnn | Rnn | Lstm | Attention | CnnLstmAttention | WhisperLora


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """Several branches, joined.

    `feature`: the branches' pooled vectors are concatenated before one classifier. `decision`: each branch
    classifies, logits are averaged with learned weights. `deep`: the vectors meet in a gated bilinear layer.
    """

    kind: Literal["fusion"]
    level: Literal["feature", "decision", "deep"]
    branches: Annotated[tuple[Branch, ...], Interval(2, 6)]
    width: Width = 64
    dropout: Share = 0.3


Kind = Literal[
    "linear",
    "mlp",
    "cnn",
    "rnn",
    "lstm",
    "attention",
    "cnn_lstm_attention",
    "whisper_lora",
    "fusion",
    "discriminator",
    "moments",
]
Generative = Discriminator | Moments
ModelSpec = Branch | Fusion | Generative


def streams_read(spec: ModelSpec) -> set[str]:
    """Returns the names of the streams that a model reads; of a fusion, of its branches.

    >>> streams_read(Linear(kind="linear", stream="pooled"))
    {'pooled'}
    """
    return {branch.stream for branch in (spec.branches if isinstance(spec, Fusion) else (spec,))}


def kinds_of(spec: ModelSpec) -> tuple[Kind, ...]:
    """Returns the kind of a model; of a fusion also the kinds of its branches, each once.

    >>> kinds_of(Linear(kind="linear", stream="pooled"))
    ('linear',)
    """
    branches = spec.branches if isinstance(spec, Fusion) else ()
    return (spec.kind, *dict.fromkeys(branch.kind for branch in branches))
