"""Features of recordings, as a study's streams ask for them, many recordings at once.

    features = extract(waveforms, study.streams, study.frames)
    features[0]["log_mel"].shape  # (1 + samples // hop, 64), float32

Guarantees:
  - A recording's features are the same numbers whatever recordings stand beside it.
  - Where librosa 0.11 has the feature, ours equals it: |ours - librosa| <= 1e-4 * max(1, |librosa|), with the
    settings of `librosa_reference` (the same formula, the same floors, no `top_db`), whether librosa is given
    float32 as it usually is, or doubles; pitch in voiced frames.
  - Every sequence has 1 + samples // hop frames, frame t centred at sample t * hop, zeros beyond the ends.
  - Nothing is scaled by the loudest frame or by any figure of another recording.
  - The streams of a study share what they have in common: one Fourier transform, one mel spectrum.

| part             | columns, in this order                                       | units              |
|------------------|--------------------------------------------------------------|--------------------|
| `stft`           | one a bin                                                    | ln magnitude       |
| `log_mel`        | one a band                                                   | ln power           |
| `mfcc`           | coefficients, then first, then second derivatives            | dB                 |
| `lpc`, `lpcc`    | coefficients 1 ... n                                         |                    |
| `formants`       | lowest first; 0 where a frame has fewer                      | kHz                |
| `pitch`          | fundamental frequency; periodicity                           | ln Hz; 0 to 1      |
| `energy`         | root mean square                                             | ln                 |
| `zero_crossings` | share of the frame's samples                                 | 0 to 1             |
| `chroma`         | from C; the strongest is 1                                   |                    |
| `spectral_shape` | centroid, bandwidth, roll-off; flatness; contrast of octaves | kHz; 0 to 1; dB    |
| `whisper`        | one a unit, layer by layer                                   |                    |
| `ge2e`           | one a unit                                                   | length 1           |

`pooling = "statistics"` gives the mean of every column, then every standard deviation, 20th and 80th
percentile. Parts of an encoder stand among them where the stream names them, pooled by their own rule: Whisper mean and
standard deviation layer by layer, GE2E the recording's one vector; the parts between two of them are pooled together.
A fundamental frequency counts only in frames whose periodicity is at least
`VOICED_PERIODICITY`, a formant only where it was found; without any such frame, all frames count.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.common import encoders
from sottovoce.common import features_loops as loops
from sottovoce.common import features_spectral as spectral
from sottovoce.common import features_temporal as temporal
from sottovoce.common.audio import Waveform
from sottovoce.common.encoders import encode
from sottovoce.common.feature_specs import (
    Chroma,
    EncoderSpec,
    Energy,
    FeatureSpec,
    FeatureStream,
    Formants,
    Frames,
    FrameSpec,
    LogMel,
    Lpc,
    Lpcc,
    Mfcc,
    Pitch,
    SpectralShape,
    Stft,
    ZeroCrossings,
)

EXTRACTOR_VERSION = 3  # part of every cache key: raise it when any number below changes
BLOCK_FRAMES = 512  # always this many: a product's rounding may depend on its size. Fewer cost more calls
TRANSFORM_FRAMES = 128  # divides a block, multiple of loops.TILE: so many, there and back, stay in a cache
BATCH_FRAMES = 8192  # how much is in work at one time
DELTA_WIDTH = 9
VOICED_PERIODICITY = 0.6
PERCENTILES = (20.0, 80.0)

Array = npt.NDArray[np.float32]
Columns = npt.NDArray[np.float64]


def extract(
    waveforms: Sequence[Waveform], streams: Sequence[FeatureStream], frames: Frames
) -> list[dict[str, Array]]:
    """Returns for each waveform its streams by name: (frames, columns), or (columns,) for pooled ones.

    Raises:
        ValueError: the waveforms differ in sample rate, or one is empty.
        WeightsError: an encoder's weights are not on this machine.
    """
    rates = {waveform.sample_rate_hz for waveform in waveforms}
    if len(rates) > 1:
        raise ValueError(f"Expected waveforms of one sample rate; came {sorted(rates)}.")
    if any(len(waveform.samples) == 0 for waveform in waveforms):
        raise ValueError("Expected at least one sample in every waveform; came an empty one.")
    _keep_freed_memory()
    parts = list(dict.fromkeys(part for stream in streams for part in _on_frames(stream.parts)))
    features = []
    with torch.inference_mode():
        for batch in _batches(waveforms, frames):
            columns = _columns(batch, parts, frames) if parts else [{} for _ in batch]
            for waveform, mine in zip(batch, columns, strict=True):
                encoded = encode.encoded(waveform, streams)
                features.append({stream.name: _stream(stream, mine, encoded) for stream in streams})
    return features


def _on_frames(parts: Sequence[FeatureSpec]) -> list[FrameSpec]:
    return [part for part in parts if not isinstance(part, EncoderSpec)]


@lru_cache
def _keep_freed_memory() -> None:
    # The C library gives large freed blocks back to the system and gets fresh pages for the next ones: a sixth
    # of the time went there. Having freed one block this large, it keeps smaller ones.
    np.empty(31 << 20, dtype=np.uint8)


def width(stream: FeatureStream, frames: Frames, sample_rate_hz: int) -> int:
    """Returns how many columns a stream has.

    >>> from sottovoce.common.feature_specs import Mfcc
    >>> mfcc = Mfcc(kind="mfcc", n_mfcc=13, deltas=2)
    >>> width(FeatureStream(name="x", parts=(mfcc,), pooling="statistics"), Frames(), 16000)
    156
    """
    columns = sum(_part_width(part, frames, sample_rate_hz) for part in _on_frames(stream.parts))
    pooled = columns * (2 + len(PERCENTILES)) if stream.pooling == "statistics" else columns
    return pooled + sum(encoders.width(part, stream.pooling) for part in stream.encoders)


def n_frames(n_samples: int, frames: Frames, sample_rate_hz: int) -> int:
    """Returns how many frames a recording has."""
    return 1 + n_samples // hop_samples(frames, sample_rate_hz)


def hop_samples(frames: Frames, sample_rate_hz: int) -> int:
    """Returns the distance of two frames."""
    return max(1, round(frames.hop_seconds * sample_rate_hz))


def window_samples(seconds: float, sample_rate_hz: int) -> int:
    """Returns a window's length."""
    return max(2, round(seconds * sample_rate_hz))


def _part_width(part: FrameSpec, frames: Frames, sample_rate_hz: int) -> int:
    match part:
        case Stft():
            return frames.fft_size // 2 + 1
        case LogMel():
            return part.n_mels
        case Mfcc():
            return min(part.n_mfcc, part.n_mels) * (1 + part.deltas)
        case Lpc():
            return part.order
        case Lpcc():
            return part.n_lpcc
        case Formants():
            return part.n_formants
        case Pitch():
            return 2
        case Energy() | ZeroCrossings():
            return 1
        case Chroma():
            return part.n_chroma
        case SpectralShape():
            return spectral.N_SHAPE + len(spectral.contrast_bands(sample_rate_hz, frames.fft_size))


def _batches(waveforms: Sequence[Waveform], frames: Frames) -> Iterator[list[Waveform]]:
    batch: list[Waveform] = []
    held = 0
    for waveform in waveforms:
        count = n_frames(len(waveform.samples), frames, waveform.sample_rate_hz)
        if batch and held + count > BATCH_FRAMES:
            yield batch
            batch, held = [], 0
        batch.append(waveform)
        held += count
    if batch:
        yield batch


def _columns(
    waveforms: Sequence[Waveform], parts: Sequence[FrameSpec], frames: Frames
) -> list[dict[FrameSpec, Columns]]:
    """Returns for each waveform its parts' columns."""
    tape = _Tape(waveforms, parts, frames)
    blocks: dict[FrameSpec, list[npt.NDArray[Any]]] = {part: [] for part in parts}
    for first in range(0, tape.n_rows, BLOCK_FRAMES):
        block = _Block(tape, first)
        for part in parts:
            blocks[part].append(_block_columns(part, block))
    whole = {part: np.concatenate(pieces) for part, pieces in blocks.items()}
    return [
        {part: _along_time(part, whole[part][rows]) for part in parts}
        for rows in (slice(first, first + count) for first, count in tape.rows)
    ]


class _Tape:
    """All recordings of a batch one after another, with so much silence between that no frame touches two.

    Frame r of the tape is centred at sample `margin + r * hop`; recordings start on a frame's centre. So all
    frames of all recordings are one strided view, without padding to the longest.
    """

    def __init__(self, waveforms: Sequence[Waveform], parts: Sequence[FrameSpec], frames: Frames) -> None:
        self.rate = waveforms[0].sample_rate_hz
        self.frames, self.hop = frames, hop_samples(frames, self.rate)
        self.window = window_samples(frames.window_seconds, self.rate)
        reach = max(frames.fft_size, self.window, *(_reach(part, self.rate) for part in parts)) // 2 + 1
        gap = -(-reach // self.hop)
        self.margin = gap * self.hop
        self._rooms: dict[tuple[int, type], npt.NDArray[Any]] = {}
        self.rows: list[tuple[int, int]] = []  # of each recording: first row, number of rows
        row = 0
        for waveform in waveforms:
            count = 1 + len(waveform.samples) // self.hop
            self.rows.append((row, count))
            row += count + gap
        self.n_rows = -(-row // BLOCK_FRAMES) * BLOCK_FRAMES
        self._write(waveforms, self.margin + self.n_rows * self.hop + reach)

    def _write(self, waveforms: Sequence[Waveform], length: int) -> None:
        self.samples = np.zeros(length, dtype=np.float32)
        self.sign_changes = np.zeros(length, dtype=np.uint8)
        for (first, _), waveform in zip(self.rows, waveforms, strict=True):
            start = self.margin + first * self.hop
            end = start + len(waveform.samples)
            self.samples[start:end] = waveform.samples
            negative = waveform.samples < -1e-10  # librosa's threshold
            self.sign_changes[start + 1 : end] = negative[1:] != negative[:-1]

    def room(self, width: int, kind: type) -> npt.NDArray[Any]:
        """Returns as many rows as are transformed at one time, the same each time: zero until somebody writes there."""
        key = (width, kind)
        if key not in self._rooms:
            self._rooms[key] = np.zeros((TRANSFORM_FRAMES, width), dtype=kind)
        return self._rooms[key]

    def start(self, row: int, offset: int) -> int:
        """Returns the sample that is `offset` before a row's centre."""
        return self.margin + row * self.hop - offset


def _frames_of(samples: npt.NDArray[Any], start: int, length: int, hop: int) -> npt.NDArray[Any]:
    size = samples.itemsize
    return np.ndarray(
        (BLOCK_FRAMES, length), samples.dtype, samples, start * size, (hop * size, size)
    )  # numpy checks that the frames lie in the buffer


def _reach(part: FrameSpec, sample_rate_hz: int) -> int:
    return window_samples(part.window_seconds, sample_rate_hz) if isinstance(part, Pitch) else 0


class _Block:
    """A block of frames, and what several features of it have in common, computed once."""

    def __init__(self, tape: _Tape, first_row: int) -> None:
        self.tape, self.first_row = tape, first_row
        self.rate, self.fft_size = tape.rate, tape.frames.fft_size
        self._made: dict[object, Any] = {}

    def _once(self, key: object, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        if key not in self._made:
            self._made[key] = make()
        made: npt.NDArray[Any] = self._made[key]
        return made

    def raw(self, length: int) -> Array:
        """Frames without a window, centred."""
        start = self.tape.start(self.first_row, length // 2)
        return _frames_of(self.tape.samples, start, length, self.tape.hop)

    def power(self) -> Array:
        """Squared magnitude of the Fourier transform, (bins, frames)."""
        return self._once("power", self._power)

    def magnitude(self) -> Array:
        return self._once("magnitude", lambda: np.sqrt(self.power()))

    def _power(self) -> Array:
        # The window stands in the middle of the transform; where its zeros go changes the phase alone.
        length = self.tape.window
        offset = self.fft_size // 2 - (self.fft_size - length) // 2
        start, windowed = self.tape.start(self.first_row, offset), self.tape.room(self.fft_size, np.float64)
        return spectral.power(self.tape.samples, start, self.tape.hop, BLOCK_FRAMES, _hann(length), windowed)

    def log_mel(self, n_mels: int, low_hz: float, high_hz: float) -> Array:
        high_hz = min(high_hz, self.rate / 2)
        setting = (self.rate, self.fft_size, n_mels, low_hz, high_hz)
        return self._once(setting, lambda: spectral.log_mel(self.power(), *setting))

    def lpc(self, order: int) -> Columns:
        return self._once(("lpc", order), lambda: temporal.lpc(self.raw(self.tape.window), order))

    def zero_crossings(self) -> Columns:
        # A sign change counts in a frame that holds both of its samples.
        length, hop = self.tape.window, self.tape.hop
        start = self.tape.start(self.first_row, length // 2 - 1)
        counts = _frames_of(self.tape.sign_changes, start, length - 1, hop).sum(axis=1, dtype=np.uint32)
        share: Columns = counts / length
        return share[:, None]


@lru_cache
def _hann(length: int) -> Columns:
    window: Columns = torch.hann_window(length, dtype=torch.float64).numpy()
    return window


def _block_columns(part: FrameSpec, block: _Block) -> npt.NDArray[Any]:
    match part:
        case Stft():
            return _by_frame(spectral.log_magnitude(block.magnitude()))
        case LogMel():
            return _by_frame(block.log_mel(part.n_mels, part.low_hz, part.high_hz))
        case Mfcc():
            return _by_frame(spectral.mfcc(block.log_mel(part.n_mels, 0.0, block.rate / 2), part.n_mfcc))
        case Lpc():
            return block.lpc(part.order)
        case Lpcc():
            return temporal.lpcc(block.lpc(part.order), part.n_lpcc)
        case Formants():
            raw = block.raw(block.tape.window)
            return temporal.formants(raw, block.rate, part.order, part.n_formants)
        case Pitch():
            return _pitch(part, block)
        case Energy():
            return temporal.log_rms(block.raw(block.tape.window), spectral.AMPLITUDE_FLOOR)
        case ZeroCrossings():
            return block.zero_crossings()
        case Chroma():
            return _by_frame(spectral.chroma(block.power(), block.rate, block.fft_size, part.n_chroma))
        case SpectralShape():
            return _by_frame(spectral.shape(block.magnitude(), block.power(), block.rate, block.fft_size))


def _by_frame(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(rows.T)


def _pitch(part: Pitch, block: _Block) -> Array:
    window = window_samples(part.window_seconds, block.rate)
    _, longest = temporal.period_range(window, block.rate, part.low_hz, part.high_hz)
    padded = block.tape.room(temporal.fast_size(window + longest), np.float32)
    padded[:, window:] = 0
    return temporal.pitch(block.raw(window), block.rate, part.low_hz, part.high_hz, padded)


def _along_time(part: FrameSpec, columns: Columns) -> Columns:
    """Adds what needs a frame's neighbours."""
    if isinstance(part, Mfcc) and part.deltas:
        orders = range(1, part.deltas + 1)
        return np.concatenate([columns, *(_derivative(columns, order) for order in orders)], axis=1)
    return columns


def _derivative(columns: Columns, order: int) -> Columns:
    """Returns the derivative of that order of a polynomial of that order, fitted to 9 frames.

    At the ends the first and the last 9 frames' polynomials go on (librosa's mode "interp"); a recording
    shorter than that has its last frame repeated.
    """
    count = len(columns)
    if count < DELTA_WIDTH:
        columns = np.pad(columns, ((0, DELTA_WIDTH - count), (0, 0)), mode="edge")
    half = DELTA_WIDTH // 2
    inner = len(columns) - 2 * half
    out = np.zeros_like(columns)
    weights, width = _derivative_weights(order), columns.shape[1]
    loops.weighted_sum(columns.reshape(-1), weights, width, out[half : half + inner].reshape(-1))
    # A polynomial of degree `order` has the same derivative of that order everywhere.
    out[:half], out[half + inner :] = out[half], out[half + inner - 1]
    return out[:count]


@lru_cache
def _derivative_weights(order: int) -> Columns:
    times = np.arange(DELTA_WIDTH) - DELTA_WIDTH // 2
    fit = np.linalg.pinv(np.vander(times, order + 1, increasing=True))  # from values to coefficients
    weights: Columns = (math.factorial(order) * fit[order]).round(15)
    return weights


def _stream(
    stream: FeatureStream, columns: dict[FrameSpec, Columns], encoded: dict[encode.Wanted, Array]
) -> Array:
    if stream.pooling == "none":
        whole = [
            encoded[part, "none"] if isinstance(part, EncoderSpec) else columns[part] for part in stream.parts
        ]
        return np.concatenate(whole, axis=1, dtype=np.float32)
    pooled = [
        encoded[part, "statistics"] if isinstance(part, EncoderSpec) else _pooled(neighbours, columns)
        for part, neighbours in _runs(stream.parts)
    ]
    return np.concatenate(pooled)


def _runs(parts: Sequence[FeatureSpec]) -> Iterator[tuple[FeatureSpec, list[FrameSpec]]]:
    """Yields each encoder's part alone, and what stands between two of them together."""
    for is_encoder, run in groupby(parts, key=lambda part: isinstance(part, EncoderSpec)):
        mine = list(run)
        if is_encoder:
            yield from ((part, []) for part in mine)
        else:
            yield mine[0], _on_frames(mine)


def pieces(stream: FeatureStream) -> tuple[FeatureStream, ...]:
    """Returns streams whose columns, one after another, are those of this stream: each can be kept by itself.

    An encoder costs a hundred times what the parts beside it cost: whoever tries other parts should not pay it again.
    """
    if not stream.encoders or len(stream.parts) == 1:
        return (stream,)
    return tuple(
        replace(stream, name=f"{stream.name}/{number}", parts=tuple(neighbours) or (part,))
        for number, (part, neighbours) in enumerate(_runs(stream.parts))
    )


def _pooled(parts: Sequence[FrameSpec], columns: dict[FrameSpec, Columns]) -> Array:
    pooled = np.concatenate([_statistics(part, columns[part]) for part in parts], axis=1)
    return pooled.astype(np.float32).reshape(-1)


def _statistics(part: FrameSpec, columns: Columns) -> Columns:
    """Returns mean, deviation, 20th and 80th percentile by row, one column each."""
    if isinstance(part, Pitch):
        frequency, periodicity = columns[:, :1], columns[:, 1:]
        groups = [frequency[periodicity[:, 0] >= VOICED_PERIODICITY], periodicity]
        groups[0] = groups[0] if len(groups[0]) else frequency
    elif isinstance(part, Formants):
        found = [column[column > 0] for column in columns.T]
        groups = [(some if len(some) else np.zeros(1))[:, None] for some in found]
    else:
        groups = [columns]
    return np.concatenate([_four(group) for group in groups], axis=1)


def _four(columns: Columns) -> Columns:
    ordered = np.sort(np.ascontiguousarray(columns.T), axis=1)
    places = np.array(PERCENTILES) / 100 * (ordered.shape[1] - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, ordered.shape[1] - 1)
    percentiles = ordered[:, low] + (places - low) * (ordered[:, high] - ordered[:, low])
    return np.stack([columns.mean(axis=0), columns.std(axis=0), *percentiles.T])


def librosa_reference(
    waveform: Waveform,
    parts: Sequence[FeatureSpec],
    frames: Frames,
    *,
    double: bool = True,
    by_hand: bool = True,
) -> list[npt.NDArray[Any]]:
    """Computes the same parts with librosa, one file at a time: what tests and benchmarks compare with.

    Pitch has the one column that librosa has. `double=False` is librosa's usual float32. `by_hand=True` hands
    one Fourier transform to every function that takes one; otherwise each makes its own, as it does when it is
    called as librosa's documentation shows, with the samples.

    Raises:
        ValueError: librosa has no such feature.
    """
    kind = _Librosa if by_hand else _LibrosaFromSamples
    reference = kind(waveform, frames, np.float64 if double else np.float32)
    return [reference.part(part).T for part in parts]


class _Librosa:
    """librosa's side of the comparison, for one recording."""

    def __init__(self, waveform: Waveform, frames: Frames, dtype: type) -> None:
        self.y: Any = waveform.samples.astype(dtype)
        self.rate = waveform.sample_rate_hz
        self.hop, self.window = (
            hop_samples(frames, self.rate),
            window_samples(frames.window_seconds, self.rate),
        )
        self.fft_size = frames.fft_size

    @cached_property
    def magnitude(self) -> Any:
        return self._transform()

    def _transform(self) -> Any:
        import librosa

        return np.abs(librosa.stft(self.y, n_fft=self.fft_size, hop_length=self.hop, win_length=self.window))

    @cached_property
    def power(self) -> Any:
        return self.magnitude**2

    def mel(self, n_mels: int, low_hz: float, high_hz: float) -> Any:
        import librosa

        high_hz = min(high_hz, self.rate / 2)
        return librosa.feature.melspectrogram(
            S=self.power, sr=self.rate, n_fft=self.fft_size, n_mels=n_mels, fmin=low_hz, fmax=high_hz
        )

    def part(self, part: FeatureSpec) -> Any:
        import librosa

        framing: dict[str, Any] = {"frame_length": self.window, "hop_length": self.hop}
        match part:
            case Stft():
                return np.log(np.maximum(self.magnitude, spectral.AMPLITUDE_FLOOR))
            case LogMel():
                mel = self.mel(part.n_mels, part.low_hz, part.high_hz)
                return np.log(np.maximum(mel, spectral.POWER_FLOOR))
            case Mfcc():
                return self._mfcc(part)
            case Lpc():
                framed = librosa.util.frame(np.pad(self.y, self.window // 2), **framing)
                return librosa.lpc(framed, order=part.order, axis=0)[1:]
            case Pitch():
                framing["frame_length"] = window_samples(part.window_seconds, self.rate)
                return np.log(
                    librosa.yin(self.y, fmin=part.low_hz, fmax=part.high_hz, sr=self.rate, **framing)
                )[None]
            case Energy():
                rms = librosa.feature.rms(y=self.y, **framing)
                return np.log(np.maximum(rms, spectral.AMPLITUDE_FLOOR))
            case ZeroCrossings():
                return librosa.feature.zero_crossing_rate(self.y, **framing)
            case Chroma():
                return librosa.feature.chroma_stft(
                    S=self.power, sr=self.rate, n_fft=self.fft_size, n_chroma=part.n_chroma, tuning=0.0
                )
            case SpectralShape():
                return self._shape()
        raise ValueError(f"Expected a feature that librosa has; came {part.kind!r}.")

    def _mfcc(self, part: Mfcc) -> Any:
        import librosa

        mel = self.mel(part.n_mels, 0.0, self.rate / 2)
        decibels = librosa.power_to_db(mel, amin=float(spectral.POWER_FLOOR), top_db=None)
        base = librosa.feature.mfcc(S=decibels, n_mfcc=part.n_mfcc)
        orders = range(1, part.deltas + 1)
        return np.concatenate([base, *(librosa.feature.delta(base, order=order) for order in orders)])

    def _shape(self) -> Any:
        from librosa import feature

        setting: dict[str, Any] = {"sr": self.rate, "n_fft": self.fft_size}
        n_bands = spectral.contrast_octaves(self.rate)
        return np.concatenate(
            [
                feature.spectral_centroid(S=self.magnitude, **setting) / 1000,
                feature.spectral_bandwidth(S=self.magnitude, **setting) / 1000,
                feature.spectral_rolloff(S=self.magnitude, **setting) / 1000,
                feature.spectral_flatness(S=self.magnitude),
                feature.spectral_contrast(S=self.magnitude, **setting, n_bands=n_bands),
            ]
        )


class _LibrosaFromSamples(_Librosa):
    """The same without sharing: whatever is asked for starts from the samples."""

    @property
    def magnitude(self) -> Any:
        return self._transform()

    @property
    def power(self) -> Any:
        return self._transform() ** 2
