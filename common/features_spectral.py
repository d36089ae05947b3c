"""Features of one frame's spectrum, on blocks of frames: rows are frames, columns are bins.

Definitions are librosa 0.11's, so that figures can be compared; the arithmetic is ours. Power comes from a
transform in double precision (quiet bins beside loud ones keep their digits) and is float32 from there on.
Products go through torch, which minds the number of threads; the rest is numpy, whose loops are quicker here.
"""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

POWER_FLOOR = np.float32(1e-10)  # librosa's `amin`: what a 16-bit recording's rounding leaves in a mel band
AMPLITUDE_FLOOR = np.float32(1e-5)
ROLL_OFF_SHARE = 0.85
CONTRAST_LOW_HZ = 200.0
CONTRAST_QUANTILE = 0.02
CONTRAST_MAX_OCTAVES = 6
N_SHAPE = 4  # centroid, bandwidth, roll-off, flatness; the contrast's bands follow

Block = npt.NDArray[np.float32]
Table = npt.NDArray[np.float64]


def product(rows: Block, matrix: Block) -> Block:
    """Returns `rows @ matrix`."""
    out: Block = torch.mm(torch.from_numpy(rows), torch.from_numpy(matrix)).numpy()
    return out


def magnitude(windowed: torch.Tensor) -> Block:
    """Magnitude of the Fourier transform of windowed, zero-padded frames: (frames, bins)."""
    spectrum = torch.fft.rfft(windowed).numpy().astype(np.complex64)
    out: Block = np.abs(spectrum)  # quick in numpy, for complex64 only
    return out


def log_magnitude(magnitude: Block) -> Block:
    """Natural logarithm of the magnitude, not below `log(AMPLITUDE_FLOOR)`."""
    return np.log(np.maximum(magnitude, AMPLITUDE_FLOOR))


def log_mel(mel_power: Block) -> Block:
    """Natural logarithm of the power in mel bands, not below `log(POWER_FLOOR)`."""
    return np.log(np.maximum(mel_power, POWER_FLOOR))


def mfcc(log_mel_power: Block, n_mfcc: int) -> Table:
    """The first cosine coefficients (orthonormal DCT-II) of the mel bands' decibels.

    librosa's `top_db` cuts a recording 80 dB below its own loudest frame; here nothing depends on another
    frame, so the comparison is with `top_db=None`.
    """
    cosines = torch.from_numpy(_cosines_of_decibels(log_mel_power.shape[1], n_mfcc))
    out: Table = (torch.from_numpy(log_mel_power).double() @ cosines).numpy()
    return out


def chroma(power: Block, sample_rate_hz: int, fft_size: int, n_chroma: int) -> Block:
    """Power by pitch class, the strongest class of a frame being 1. Tuning is A = 440 Hz, never estimated."""
    raw = product(power, _chroma_filters(sample_rate_hz, fft_size, n_chroma))
    peak = raw.max(axis=1, keepdims=True)
    raw /= np.where(peak < np.finfo(np.float32).tiny, np.float32(1), peak)
    return raw


def shape(magnitude: Block, power: Block, sample_rate_hz: int, fft_size: int) -> Block:
    """Centroid, bandwidth, roll-off (kHz), flatness, and the contrast (dB) of octave bands."""
    middle = sample_rate_hz / 4000
    hertz = _bin_hz(sample_rate_hz, fft_size)
    total, first, second = product(magnitude, _powers_of_khz(sample_rate_hz, fft_size)).T
    sounds = total >= np.finfo(np.float32).tiny  # silence has its centroid and bandwidth at 0
    total = np.where(sounds, total, np.float32(1))
    mean = first / total
    bandwidth = np.sqrt(np.maximum(second / total - np.square(mean), 0))
    passed = torch.cumsum(torch.from_numpy(magnitude), dim=1, dtype=torch.float64)
    roll_off = hertz[torch.searchsorted(passed, ROLL_OFF_SHARE * passed[:, -1:]).numpy()[:, 0]] / 1000
    floored = np.maximum(power, POWER_FLOOR)
    flatness = np.exp(np.log(floored).mean(axis=1)) / floored.mean(axis=1)
    columns = np.stack([np.where(sounds, mean + middle, 0), bandwidth, roll_off, flatness], axis=1)
    contrast = _contrast(magnitude, contrast_bands(sample_rate_hz, fft_size))
    return np.concatenate([columns, contrast.T], axis=1, dtype=np.float32)


def _contrast(magnitude: Block, bands: tuple[tuple[int, int, int], ...]) -> Block:
    by_bin = np.ascontiguousarray(magnitude.T)  # maxima of whole rows are quicker, sorting is not
    peaks, valleys = [], []
    for first, last, count in bands:
        if count == 1:
            peaks.append(by_bin[first:last].max(axis=0))
            valleys.append(by_bin[first:last].min(axis=0))
        else:
            ordered = np.sort(magnitude[:, first:last], axis=1)
            peaks.append(ordered[:, -count:].mean(axis=1))
            valleys.append(ordered[:, :count].mean(axis=1))
    decibels: Block = 10 * np.log10(np.maximum(np.stack([*peaks, *valleys]), POWER_FLOOR))
    return decibels[: len(bands)] - decibels[len(bands) :]


@lru_cache
def contrast_bands(sample_rate_hz: int, fft_size: int) -> tuple[tuple[int, int, int], ...]:
    """Returns each band's first bin, last bin (excluded), and how many bins make its peak and its valley.

    Below 200 Hz, then octaves, as many (at most 6) as start below the Nyquist frequency; the last one goes up
    to it. A band that holds no bin of a short transform is left out.
    """
    hertz = _bin_hz(sample_rate_hz, fft_size)
    n_octaves = contrast_octaves(sample_rate_hz)
    edges = [0.0, *(CONTRAST_LOW_HZ * 2.0 ** np.arange(n_octaves + 1))]
    bands = []
    for index, (low, high) in enumerate(pairwise(edges)):
        inside = np.flatnonzero((hertz >= low) & (hertz <= high))
        if not len(inside):
            continue
        first = inside[0] - (1 if index else 0)
        last = len(hertz) if index == n_octaves else inside[-1] + 1
        count = max(1, int(np.rint(CONTRAST_QUANTILE * (last - first))))
        last -= 0 if index == n_octaves else 1
        if last > first:
            bands.append((int(first), int(last), min(count, int(last - first))))
    return tuple(bands)


def contrast_octaves(sample_rate_hz: int) -> int:
    """Returns how many octaves above 200 Hz start below the Nyquist frequency, at most 6."""
    return min(CONTRAST_MAX_OCTAVES, math.ceil(math.log2(sample_rate_hz / 2 / CONTRAST_LOW_HZ)))


def _bin_hz(sample_rate_hz: int, fft_size: int) -> Table:
    return np.asarray(np.fft.rfftfreq(fft_size, 1 / sample_rate_hz), dtype=np.float64)


@lru_cache
def _powers_of_khz(sample_rate_hz: int, fft_size: int) -> Block:
    # Measured from the middle of the band, so that the variance loses few digits.
    khz = _bin_hz(sample_rate_hz, fft_size) / 1000 - sample_rate_hz / 4000
    return np.stack([np.ones_like(khz), khz, khz**2], axis=1).astype(np.float32)


@lru_cache
def mel_filters(sample_rate_hz: int, fft_size: int, n_mels: int, low_hz: float, high_hz: float) -> Block:
    """Returns triangles of unit area on Slaney's mel scale, (bins, n_mels)."""
    low, high = _to_mel(low_hz), _to_mel(min(high_hz, sample_rate_hz / 2))
    corners = np.array([_from_mel(mel) for mel in np.linspace(low, high, n_mels + 2)])
    bins = _bin_hz(sample_rate_hz, fft_size)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * 2 / (corners[2:] - corners[:-2]), dtype=np.float32)


def _to_mel(hertz: float) -> float:
    # Slaney's Auditory Toolbox: linear to 1 kHz (15 mel), then 27 steps for a factor of 6.4.
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _from_mel(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


@lru_cache
def _cosines_of_decibels(n_in: int, n_out: int) -> Table:
    angles = np.pi * np.outer(np.arange(n_in) + 0.5, np.arange(min(n_in, n_out))) / n_in
    basis = np.cos(angles) * np.sqrt(2 / n_in)
    basis[:, 0] /= np.sqrt(2)
    return np.asarray(basis * 10 / np.log(10), dtype=np.float64)


@lru_cache
def _chroma_filters(sample_rate_hz: int, fft_size: int, n_chroma: int) -> Block:
    """Returns Ellis's chroma filters, (bins, n_chroma): bumps round each class, octave 5 strongest."""
    hertz = np.arange(1, fft_size) * sample_rate_hz / fft_size
    place = n_chroma * np.log2(hertz / 27.5)  # in classes above A0
    place = np.concatenate([[place[0] - 1.5 * n_chroma], place])  # the bin of 0 Hz has none of its own
    breadth = np.concatenate([np.maximum(np.diff(place), 1.0), [1.0]])
    half = np.round(n_chroma / 2)
    distance = np.remainder(place[:, None] - np.arange(n_chroma) + half + 10 * n_chroma, n_chroma) - half
    bumps = np.exp(-0.5 * (2 * distance / breadth[:, None]) ** 2)
    bumps /= np.sqrt((bumps**2).sum(axis=1, keepdims=True))
    bumps *= np.exp(-0.5 * ((place[:, None] / n_chroma - 5.0) / 2.0) ** 2)
    bumps = np.roll(bumps, -3 * (n_chroma // 12), axis=1)  # C first
    return np.ascontiguousarray(bumps[: fft_size // 2 + 1], dtype=np.float32)
