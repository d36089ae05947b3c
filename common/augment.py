"""Changes to training recordings that keep their emotion: noise, speed, pitch, shift; and masks on features.

    copy = augment(waveform, study.training.augmentation, streams.stream(seed, "augmentation", key))
    masked = mask(log_mel, lengths, study.training.augmentation, study.frames, generator)

Guarantees:
  - The same generator state gives the same result; every stage draws whether or not it is applied, so that a
    change of one probability leaves the other stages' draws alone.
  - Samples and features stay finite, inputs are not changed.
  - A sequence keeps its length under masks, and padding is never touched.

For training without privacy only: under private training a patient's copies would have to be clipped together.
"""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sottovoce.common.audio import Waveform
from sottovoce.common.audio_stages import resample
from sottovoce.common.feature_specs import Frames
from sottovoce.common.study import Augmentation

FINEST_SPEED = 100  # speeds are whole percents: a resampler for each is kept

Samples = npt.NDArray[np.float32]


def augment(waveform: Waveform, spec: Augmentation, random: np.random.Generator) -> Waveform:
    """Returns a changed copy: speed, pitch, shift, noise, each with its probability."""
    samples, rate = waveform.samples, waveform.sample_rate_hz
    chances = random.random(4)
    factor = 1 + random.uniform(-1, 1) * spec.speed_range
    semitones = random.uniform(-1, 1) * spec.pitch_semitones
    seconds = random.uniform(-1, 1) * spec.shift_seconds
    noise_seed = int(random.integers(2**63))
    if chances[0] < spec.speed_prob:
        samples = change_speed(samples, factor)
    if chances[1] < spec.pitch_prob:
        samples = change_pitch(samples, semitones)
    if chances[2] < spec.shift_prob:
        samples = shift(samples, round(seconds * rate))
    if chances[3] < spec.noise_prob:
        samples = add_noise(samples, spec.noise_snr_db, np.random.Generator(np.random.Philox(noise_seed)))
    return Waveform(samples=samples, sample_rate_hz=rate)


def add_noise(samples: Samples, snr_db: float, random: np.random.Generator) -> Samples:
    """Adds white noise `snr_db` below the recording's mean power. Silence stays silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    deviation = math.sqrt(power / 10 ** (snr_db / 10))
    noise = random.standard_normal(len(samples), dtype=np.float32)
    return samples + np.float32(deviation) * noise


def change_speed(samples: Samples, factor: float) -> Samples:
    """Plays faster by `factor` (rounded to whole percents): shorter, and higher by as much."""
    percent = max(1, round(factor * FINEST_SPEED))
    return resample(samples, percent, FINEST_SPEED) if percent != FINEST_SPEED else samples


def change_pitch(samples: Samples, semitones: float) -> Samples:
    """Moves all frequencies by `semitones`; duration and number of samples stay.

    The recording is stretched by a phase vocoder and then played faster by the same ratio.
    """
    ratio = Fraction(2 ** (semitones / 12)).limit_denominator(FINEST_SPEED)
    if ratio == 1 or len(samples) < VOCODER_FFT:
        return samples
    stretched = stretch(samples, 1 / float(ratio))
    played = resample(stretched, ratio.numerator, ratio.denominator)
    out = np.zeros_like(samples)
    out[: len(played)] = played[: len(samples)]
    return out


VOCODER_FFT, VOCODER_HOP = 512, 128


def stretch(samples: Samples, speed: float) -> Samples:
    """Changes duration by 1 / `speed` and keeps pitch: a phase vocoder (Flanagan and Golden 1966)."""
    window = torch.hann_window(VOCODER_FFT)
    frames = torch.stft(
        torch.from_numpy(np.ascontiguousarray(samples)),
        VOCODER_FFT,
        VOCODER_HOP,
        window=window,
        pad_mode="constant",
        return_complex=True,
    )
    times = torch.arange(0, frames.shape[1] - 1, speed, dtype=torch.float64)
    before = times.long()
    share = (times - before).float()
    magnitude = frames.abs()
    mixed = magnitude[:, before] * (1 - share) + magnitude[:, before + 1] * share
    expected = 2 * math.pi * VOCODER_HOP / VOCODER_FFT * torch.arange(VOCODER_FFT // 2 + 1)[:, None]
    angle = frames.angle()
    step = angle[:, before + 1] - angle[:, before] - expected
    step = step - 2 * math.pi * (step / (2 * math.pi)).round() + expected  # the true advance of each bin
    phase = torch.cat([angle[:, :1], step[:, :-1]], dim=1).double().cumsum(dim=1).float()
    length = round(len(samples) / speed)
    spectrum = torch.polar(mixed, phase)
    out: Samples = torch.istft(spectrum, VOCODER_FFT, VOCODER_HOP, window=window, length=length).numpy()
    return out


def shift(samples: Samples, by: int) -> Samples:
    """Moves a recording later by `by` samples (earlier if negative); zeros come in, what leaves is lost."""
    out = np.zeros_like(samples)
    if abs(by) < len(samples):
        out[max(0, by) : len(samples) + min(0, by)] = samples[max(0, -by) : len(samples) - max(0, by)]
    return out


def mask(
    features: Tensor,
    lengths: Tensor,
    spec: Augmentation,
    frames: Frames,
    random: np.random.Generator,
) -> Tensor:
    """SpecAugment (Park et al. 2019) on a batch (B, T, D): masks of time and of bands, each its own.

    A mask is 0, which is the mean of normalised features. Masks lie in the valid frames.
    """
    n_rows, n_steps, n_bands = features.shape
    widest = max(0, round(spec.time_mask_seconds / frames.hop_seconds))
    steps = torch.arange(n_steps)
    bands = torch.arange(n_bands)
    keep = torch.ones(n_rows, n_steps, n_bands, dtype=torch.bool)
    valid = lengths.cpu().numpy()
    for _ in range(spec.time_masks):
        first, last = _spans(valid, widest, random)
        keep &= ~((steps >= first) & (steps < last))[:, :, None]
    for _ in range(spec.band_masks):
        first, last = _spans(np.full(n_rows, n_bands), spec.band_mask_width, random)
        keep &= ~((bands >= first) & (bands < last))[:, None, :]
    keep |= steps[None, :, None] >= lengths.cpu()[:, None, None]
    return torch.where(keep.to(features.device), features, torch.zeros((), device=features.device))


def _spans(room: npt.NDArray[np.int64], widest: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Returns for each row where a span begins and ends: at most `widest` wide, at most half of its room."""
    widths = np.minimum(random.integers(0, widest + 1, len(room)), room // 2)
    first = (random.random(len(room)) * (room - widths + 1)).astype(np.int64)
    return torch.from_numpy(first)[:, None], torch.from_numpy(first + widths)[:, None]
