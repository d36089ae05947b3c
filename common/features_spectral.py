"""Features of one frame's spectrum, on blocks of frames: rows are bins or bands, columns are frames.

Definitions are librosa 0.11's, so that figures can be compared; the arithmetic is ours. Power comes from a
transform in double precision (quiet bins beside loud ones keep their digits) and is float32 from there on.
Transforms and products go through torch, which minds the number of threads, and what would be many passes over
memory through `features_loops`; the rest is numpy.
"""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.common import features_loops as loops

POWER_FLOOR = np.float32(1e-10)  # librosa's `amin`: what a 16-bit recording's rounding leaves in a mel band
AMPLITUDE_FLOOR = np.float32(1e-5)
ROLL_OFF_SHARE = 0.85
CONTRAST_LOW_HZ = 200.0
CONTRAST_QUANTILE = 0.02
CONTRAST_MAX_OCTAVES = 6
N_SHAPE = 4  # centroid, bandwidth, roll-off, flatness; the contrast's bands follow

Block = npt.NDArray[np.float32]
Table = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Bands = tuple[Block, Places, Places]


def product(matrix: Block, power: Block) -> Block:
    """Returns `matrix.T @ power`."""
    out: Block = torch.mm(torch.from_numpy(matrix).t(), torch.from_numpy(power)).numpy()
    return out


def power(samples: Block, start: int, hop: int, n_frames: int, window: Table, windowed: Table) -> Block:
    """Squared magnitude of the Fourier transform of frames that begin at `start`, `start + hop`, ...

    `windowed` is room for some of the frames at a time, as wide as the transform and zero beyond the window.
    """
    if len(window) > windowed.shape[1]:  # a compiled loop would not notice
        raise ValueError(
            f"Expected a window of at most fft_size={windowed.shape[1]} samples; came {len(window)}."
        )
    out = np.empty((windowed.shape[1] // 2 + 1, n_frames), dtype=np.float32)
    for first in range(0, n_frames, len(windowed)):
        loops.windowed(samples, start + first * hop, hop, window, windowed)
        spectrum = torch.fft.rfft(torch.from_numpy(windowed)).numpy()
        loops.squared(spectrum, out[:, first : first + len(windowed)])
    return out


def log_magnitude(magnitude: Block) -> Block:
    """Natural logarithm of the magnitude, not below `log(AMPLITUDE_FLOOR)`."""
    return np.log(np.maximum(magnitude, AMPLITUDE_FLOOR))


def log_mel(
    power: Block, sample_rate_hz: int, fft_size: int, n_mels: int, low_hz: float, high_hz: float
) -> Block:
    """Natural logarithm of the power in mel bands, not below `log(POWER_FLOOR)`."""
    filters, firsts, lasts = mel_filters(sample_rate_hz, fft_size, n_mels, low_hz, high_hz)
    mel_power = np.zeros((n_mels, power.shape[1]), dtype=np.float32)
    loops.band_sums(power, filters, firsts, lasts, mel_power)
    return np.log(np.maximum(mel_power, POWER_FLOOR))


def mfcc(log_mel_power: Block, n_mfcc: int) -> Table:
    """The first cosine coefficients (orthonormal DCT-II) of the mel bands' decibels.

    librosa's `top_db` cuts a recording 80 dB below its own loudest frame; here nothing depends on another
    frame, so the comparison is with `top_db=None`.
    """
    cosines = torch.from_numpy(_cosines_of_decibels(len(log_mel_power), n_mfcc))
    out: Table = torch.mm(cosines.t(), torch.from_numpy(log_mel_power).double()).numpy()
    return out


def chroma(power: Block, sample_rate_hz: int, fft_size: int, n_chroma: int) -> Block:
    """Power by pitch class, the strongest class of a frame being 1. Tuning is A = 440 Hz, never estimated."""
    raw = product(_chroma_filters(sample_rate_hz, fft_size, n_chroma), power)
    peak = raw.max(axis=0)
    raw /= np.where(peak < np.finfo(np.float32).tiny, np.float32(1), peak)
    return raw


def shape(magnitude: Block, power: Block, sample_rate_hz: int, fft_size: int) -> Block:
    """Centroid, bandwidth, roll-off (kHz), flatness, and the contrast (dB) of octave bands."""
    middle = sample_rate_hz / 4000
    hertz = _bin_hz(sample_rate_hz, fft_size)
    total, first, second = product(_powers_of_khz(sample_rate_hz, fft_size), magnitude)
    sounds = total >= np.finfo(np.float32).tiny  # silence has its centroid and bandwidth at 0
    total = np.where(sounds, total, np.float32(1))
    mean = first / total
    bandwidth = np.sqrt(np.maximum(second / total - np.square(mean), 0))
    roll_off = hertz[_roll_off(magnitude)] / 1000
    floored = np.maximum(power, POWER_FLOOR)
    flatness = np.exp(_means(np.log(floored))) / _means(floored)
    rows = np.stack([np.where(sounds, mean + middle, 0), bandwidth, roll_off, flatness])
    contrast = _contrast(magnitude, contrast_bands(sample_rate_hz, fft_size))
    return np.concatenate([rows, contrast], dtype=np.float32)


def _means(block: Block) -> Block:
    weights = np.full((len(block), 1), 1 / len(block), dtype=np.float32)
    out: Block = product(weights, block)[0]
    return out


def _roll_off(magnitude: Block) -> Places:
    n_frames = magnitude.shape[1]
    total, passed, bins = np.zeros(n_frames), np.zeros(n_frames), np.zeros(n_frames, dtype=np.int64)
    loops.roll_off(magnitude, ROLL_OFF_SHARE, total, passed, bins)
    return bins


def _contrast(magnitude: Block, bands: tuple[tuple[int, int, int], ...]) -> Block:
    valleys, peaks = (np.empty((len(bands), magnitude.shape[1]), dtype=np.float32) for _ in range(2))
    loops.extremes(magnitude, np.array(bands), valleys, peaks)
    for place, (first, last, count) in enumerate(bands):
        if count > 1:
            low = np.full((count, magnitude.shape[1]), np.inf, dtype=np.float32)
            high = -low
            loops.several_extremes(magnitude[first:last], low, high)
            low.mean(axis=0, out=valleys[place])
            high.mean(axis=0, out=peaks[place])
    peaks, valleys = (np.log10(np.maximum(found, POWER_FLOOR)) for found in (peaks, valleys))
    decibels: Block = 10 * (peaks - valleys)
    return decibels


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
def mel_filters(sample_rate_hz: int, fft_size: int, n_mels: int, low_hz: float, high_hz: float) -> Bands:
    """Returns triangles of unit area on Slaney's mel scale, (bins, n_mels), each one's first and last bin."""
    low, high = _to_mel(low_hz), _to_mel(min(high_hz, sample_rate_hz / 2))
    corners = np.array([_from_mel(mel) for mel in np.linspace(low, high, n_mels + 2)])
    bins = _bin_hz(sample_rate_hz, fft_size)[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    filters = np.asarray(triangles * 2 / (corners[2:] - corners[:-2]), dtype=np.float32)
    firsts = (filters > 0).argmax(axis=0)
    return filters, firsts, firsts + np.count_nonzero(filters, axis=0)  # the last one is excluded


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
