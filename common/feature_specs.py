"""What features a study asks for: public constants, no arithmetic (that is in `features.py`).

Every feature is computed on one frame grid, `Frames`, so that several can stand side by side in one stream; frozen
encoders have frames of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from sottovoce.common.config import Interval

Seconds = Annotated[float, Interval(0.001, 1.0)]
Hertz = Annotated[float, Interval(0.0, 24_000.0)]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The grid of frames: centred, reflected at the ends never, zero-padded (as librosa's default)."""

    window_seconds: Seconds = 0.025
    hop_seconds: Seconds = 0.010
    fft_size: Annotated[int, Interval(64, 16_384)] = 512


@dataclass(frozen=True, kw_only=True)
class Stft:
    """Log magnitude of the short-time Fourier transform, `fft_size / 2 + 1` columns."""

    kind: Literal["stft"]


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """Log of the mel-band power, `n_mels` columns."""

    kind: Literal["log_mel"]
    n_mels: Annotated[int, Interval(4, 256)] = 64
    low_hz: Hertz = 0.0
    high_hz: Hertz = 8000.0


@dataclass(frozen=True, kw_only=True)
class Mfcc:
    """Mel-frequency cepstral coefficients, with `deltas` orders of derivatives."""

    kind: Literal["mfcc"]
    n_mfcc: Annotated[int, Interval(2, 64)] = 20
    n_mels: Annotated[int, Interval(4, 256)] = 64
    deltas: Annotated[int, Interval(0, 2)] = 0


@dataclass(frozen=True, kw_only=True)
class Lpc:
    """Linear prediction coefficients (Burg's method, as librosa), `order` columns."""

    kind: Literal["lpc"]
    order: Annotated[int, Interval(2, 32)] = 12


@dataclass(frozen=True, kw_only=True)
class Lpcc:
    """Cepstrum of the linear predictor, `n_lpcc` columns."""

    kind: Literal["lpcc"]
    order: Annotated[int, Interval(2, 32)] = 12
    n_lpcc: Annotated[int, Interval(2, 32)] = 12


@dataclass(frozen=True, kw_only=True)
class Formants:
    """The lowest formant frequencies (roots of the linear predictor), in kHz."""

    kind: Literal["formants"]
    n_formants: Annotated[int, Interval(1, 5)] = 3
    order: Annotated[int, Interval(4, 32)] = 18


@dataclass(frozen=True, kw_only=True)
class Pitch:
    """Log of the fundamental frequency by YIN, and how periodic the frame is."""

    kind: Literal["pitch"]
    low_hz: Hertz = 65.0
    high_hz: Hertz = 500.0
    window_seconds: Seconds = 0.064


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Log of the frame's root mean square."""

    kind: Literal["energy"]


@dataclass(frozen=True, kw_only=True)
class ZeroCrossings:
    """The share of neighbouring samples that differ in sign."""

    kind: Literal["zero_crossings"]


@dataclass(frozen=True, kw_only=True)
class Chroma:
    """Energy by pitch class."""

    kind: Literal["chroma"]
    n_chroma: Annotated[int, Interval(2, 36)] = 12


@dataclass(frozen=True, kw_only=True)
class SpectralShape:
    """Centroid, bandwidth, roll-off, flatness and contrast of the spectrum."""

    kind: Literal["spectral_shape"]


Sha256 = Annotated[str, Interval(64, 64)]
WhisperSize = Literal["tiny", "base", "small"]
WHISPER_SIZES: Mapping[WhisperSize, tuple[int, int]] = {  # columns, blocks
    "tiny": (384, 4),
    "base": (512, 6),
    "small": (768, 12),
}
WHISPER_TINY_EN = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
GE2E_PRETRAINED = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"


@dataclass(frozen=True, kw_only=True)
class Whisper:
    """The frozen encoder of Whisper, 50 frames a second; weights by their SHA-256 (`common/pretrained.py`).

    `layers`: `"last"` is what the decoder reads, the last block's output after a layer norm; numbers 1 ... n are the
    outputs of the n blocks, n + 1 the last; `"all"` is all of these; 0 is what the first block reads. In a pooled
    stream, mean and standard deviation over time of each layer.

    Privacy: the numbers name the speaker. They are computed and kept at the site, and never leave it.
    """

    kind: Literal["whisper"]
    sha256: Sha256 = WHISPER_TINY_EN
    size: WhisperSize = "tiny"
    layers: Literal["last", "all"] | tuple[Annotated[int, Interval(0, 13)], ...] = "last"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layers by number, in the order of their columns.

        >>> Whisper(kind="whisper").numbers, Whisper(kind="whisper", layers="all").numbers
        ((5,), (1, 2, 3, 4, 5))
        """
        last = WHISPER_SIZES[self.size][1] + 1
        if isinstance(self.layers, tuple):
            return self.layers
        return (last,) if self.layers == "last" else tuple(range(1, last + 1))


@dataclass(frozen=True, kw_only=True)
class Ge2e:
    """A frozen network that was trained to tell speakers apart (GE2E), 256 columns; weights by their SHA-256.

    A sequence has a row for each window of 1.6 s, every 0.1 s; a pooled stream has the recording's one vector.

    Privacy: the numbers name the speaker, that is what they are for. They are computed and kept at the site, and never
    leave it.
    """

    kind: Literal["ge2e"]
    sha256: Sha256 = GE2E_PRETRAINED


FrameSpec = (
    Stft | LogMel | Mfcc | Lpc | Lpcc | Formants | Pitch | Energy | ZeroCrossings | Chroma | SpectralShape
)
EncoderSpec = Whisper | Ge2e
FeatureSpec = (  # written out: a study's problems list its kinds in this order
    Stft
    | LogMel
    | Mfcc
    | Lpc
    | Lpcc
    | Formants
    | Pitch
    | Energy
    | ZeroCrossings
    | Chroma
    | SpectralShape
    | Whisper
    | Ge2e
)


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """A public linear map of a stream to its first `columns`, after normalisation; from the file with that SHA-256.

    `sottovoce server pretrain --reduction` makes one from public recordings alone (`common/reduction.py`).
    """

    sha256: Sha256
    columns: Annotated[int, Interval(1, 4096)]


@dataclass(frozen=True, kw_only=True)
class FeatureStream:
    """Features side by side, under a name that models refer to.

    `pooling = "none"` keeps the sequence of frames; `"statistics"` keeps four numbers a column over the
    recording: mean, standard deviation, 20th and 80th percentile. An encoder's part is pooled by its own rule, and as
    a sequence it stands alone in its stream, because it has its own frames.
    """

    name: Annotated[str, Interval(1, 40)]
    parts: Annotated[tuple[FeatureSpec, ...], Interval(1, 16)]
    pooling: Literal["none", "statistics"] = "none"
    reduction: Reduction | None = None

    @property
    def encoders(self) -> tuple[EncoderSpec, ...]:
        """The parts that need weights."""
        return tuple(part for part in self.parts if isinstance(part, EncoderSpec))
