"""What happens to samples between the decoder and the features: one function a stage, in one fixed order.

Resampling, denoising, trimming of silence, pre-emphasis. Each stage looks at one recording alone.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sottovoce.common.study import Audio

if TYPE_CHECKING:
    import torch

Samples = npt.NDArray[np.float32]

ZERO_CROSSINGS = (
    64  # of the sinc, each side: the transition from passing to stopping takes a tenth of the band
)
KAISER_BETA = 10.0  # stops by about 100 dB
CUTOFF = 0.95  # of the lower Nyquist frequency, the middle of the transition
MIN_PHASES = 64  # fewer make thin matrix products: 1/3 is computed as 64/192

TRIM_FRAME, TRIM_HOP = 2048, 512
TRIM_FLOOR = 1e-5

GATE_FFT, GATE_HOP = 512, 128
GATE_PERCENTILE = 15.0
GATE_OVER = 2.0  # how many times the noise's amplitude is taken out: noise fluctuates
GATE_FLOOR = 0.1  # -20 dB stay, so that gating leaves no holes


def prepare(samples: Samples, sample_rate_hz: int, spec: Audio) -> Samples:
    """Takes decoded samples through the study's stages: resample, denoise, trim, pre-emphasise."""
    if sample_rate_hz != spec.sample_rate_hz:
        samples = resample(samples, sample_rate_hz, spec.sample_rate_hz)
    if spec.denoise == "spectral_gate":
        samples = spectral_gate(samples)
    if spec.trim_silence_db is not None:
        first, last = loud_part(samples, spec.trim_silence_db)
        samples = samples[first:last]
    if spec.pre_emphasis:
        samples = pre_emphasise(samples, spec.pre_emphasis)
    return np.ascontiguousarray(samples)


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """Changes the sample rate by a windowed sinc, exactly in phase; `ceil(n * to / from)` samples come out.

    Guarantees:
      - Up to 90 % of the lower Nyquist frequency a tone keeps its amplitude within 0.01 dB.
      - Beyond the new Nyquist frequency a tone is stopped by at least 90 dB: nothing folds back.
      - The same samples give the same result; a constant stays that constant away from the ends.
    """
    import torch

    divisor = math.gcd(from_hz, to_hz)
    up, down = to_hz // divisor, from_hz // divisor
    n_out = -(-len(samples) * up // down)
    scale = max(1, -(-MIN_PHASES // up))
    up, down = up * scale, down * scale
    n_blocks = -(-n_out // up)  # an output block of `up` samples per `down` samples of input
    kernels = _kernels(up, down)
    before = max(0, -kernels[0][0])
    after = max(0, n_blocks * down + max(start + kernel.shape[1] for start, kernel in kernels) - len(samples))
    padded = torch.from_numpy(np.pad(samples, (before, after)))
    out = torch.empty(n_blocks, up)
    phase = 0
    for start, kernel in kernels:
        windows = padded[before + start :].unfold(0, kernel.shape[1], down)[:n_blocks]
        out[:, phase : phase + len(kernel)] = windows @ kernel.T
        phase += len(kernel)
    return out.view(-1)[:n_out].numpy()


@lru_cache(maxsize=4)
def _kernels(up: int, down: int) -> "tuple[tuple[int, torch.Tensor], ...]":
    """Returns, for groups of neighbouring output phases, where their input starts and their filters."""
    import torch

    half = ZERO_CROSSINGS * max(1.0, down / up)
    group = max(1, min(up, int(2 * half * up / down)))  # a group's inputs overlap by half or more
    kernels = []
    for phase in range(0, up, group):
        times = np.arange(phase, min(phase + group, up)) * (down / up)
        start = math.floor(times[0] - half)
        taps = np.arange(start, math.ceil(times[-1] + half) + 1)
        kernels.append((start, torch.from_numpy(_sinc(taps[None] - times[:, None], half, up, down))))
    return tuple(kernels)


@lru_cache
def _kaiser() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    # A table: np.i0 of every tap of an odd ratio takes seconds, and linear interpolation is good to 1e-9 here.
    places = np.linspace(0, 1, 1 << 16)
    values = np.i0(KAISER_BETA * np.sqrt(1 - places**2))
    values[-1] = 0.0  # beyond the end there is nothing
    return places, values


def _sinc(distance: npt.NDArray[np.float64], half: float, up: int, down: int) -> Samples:
    cutoff = CUTOFF * min(1.0, up / down)
    window = np.interp(np.abs(distance) / half, *_kaiser())
    kernel = np.sinc(cutoff * distance) * window
    kernel /= kernel.sum(axis=1, keepdims=True)
    return np.asarray(kernel, dtype=np.float32)


def loud_part(samples: Samples, top_db: float) -> tuple[int, int]:
    """Returns the samples between which a recording is less than `top_db` below its loudest frame.

    The frames are those of `librosa.effects.trim` (2048 samples, hop 512, centred, zero-padded), and so is
    the answer. A recording of pure silence is all kept.
    """
    padded = np.pad(samples.astype(np.float64), TRIM_FRAME // 2)
    total = np.concatenate([[0.0], np.cumsum(padded**2)])
    starts = np.arange(0, len(padded) - TRIM_FRAME + 1, TRIM_HOP)
    rms = np.sqrt(np.maximum(total[starts + TRIM_FRAME] - total[starts], 0.0) / TRIM_FRAME)
    decibels = 20 * np.log10(np.maximum(rms, TRIM_FLOOR))
    loud = np.flatnonzero(decibels > decibels.max() - top_db)
    return int(loud[0]) * TRIM_HOP, min(len(samples), int(loud[-1] + 1) * TRIM_HOP)


def pre_emphasise(samples: Samples, coefficient: float) -> Samples:
    """Returns `y[t] = x[t] - coefficient * x[t - 1]`, with `x[-1] = 0`."""
    out = samples.copy()
    out[1:] -= np.float32(coefficient) * samples[:-1]
    return out


def spectral_gate(samples: Samples) -> Samples:
    """Takes a steady noise out: spectral subtraction from each band's quiet frames (Boll 1979).

    Guarantees:
      - White noise under speech loses at least 6 dB; a clean recording keeps its shape.
      - As many samples come out; nothing gets louder.
    """
    import torch

    if len(samples) < GATE_FFT:
        return samples
    window = torch.hann_window(GATE_FFT)
    signal = torch.from_numpy(np.ascontiguousarray(samples))
    spectrum = torch.stft(signal, GATE_FFT, GATE_HOP, window=window, pad_mode="constant", return_complex=True)
    power = torch.nn.functional.avg_pool2d(
        spectrum.abs().square()[None], kernel_size=(3, 5), stride=1, padding=(1, 2), count_include_pad=False
    )[0]
    noise = torch.quantile(power, GATE_PERCENTILE / 100, dim=1, keepdim=True)
    gain = (1 - GATE_OVER**2 * noise / power.clamp(min=1e-12)).clamp(min=GATE_FLOOR**2).sqrt()
    out = torch.istft(spectrum * gain, GATE_FFT, GATE_HOP, window=window, length=len(samples))
    return out.numpy()
