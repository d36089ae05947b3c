"""What features a study asks for: public constants, no arithmetic (that is in `features.py`).

Every feature is computed on one frame grid, `Frames`, so that several can stand side by side in one stream.
"""

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


FeatureSpec = (
    Stft | LogMel | Mfcc | Lpc | Lpcc | Formants | Pitch | Energy | ZeroCrossings | Chroma | SpectralShape
)


@dataclass(frozen=True, kw_only=True)
class FeatureStream:
    """Features side by side, under a name that models refer to.

    `pooling = "none"` keeps the sequence of frames; `"statistics"` keeps four numbers a column over the
    recording: mean, standard deviation, 20th and 80th percentile.
    """

    name: Annotated[str, Interval(1, 40)]
    parts: Annotated[tuple[FeatureSpec, ...], Interval(1, 16)]
    pooling: Literal["none", "statistics"] = "none"
