"""Features of one frame's samples, on blocks of frames: rows are frames.

Definitions are librosa 0.11's where librosa has the feature; the arithmetic is ours. Prediction is done in
double precision (a nearly predictable frame needs it), the rest in float32.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.common import features_loops as loops

TROUGH = np.float32(0.1)  # YIN's threshold, librosa's default
SILENCE_POWER = 1e-10  # a frame below it has no pitch
FORMANT_LOW_HZ = 90.0
FORMANT_MAX_BANDWIDTH_HZ = 500.0
FORMANT_PRE_EMPHASIS = 0.97
LPC_ROWS = 64  # Burg's method goes over its frames again and again: so many stay in a cache
EXHAUSTED = 1e-13  # the share of a frame's power that rounding leaves unpredictable
TINY = np.finfo(np.float64).tiny

Block = npt.NDArray[np.float32]
Frames = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


def log_rms(frames: Block, floor: np.float32) -> Block:
    """Natural logarithm of the root mean square, not below `log(floor)`."""
    rms: Block = np.sqrt(np.vecdot(frames, frames) / np.float32(frames.shape[1]))
    return np.log(np.maximum(rms, floor))[:, None]


def lpc(frames: Frames | Block, order: int) -> Frames:
    """Linear prediction coefficients a_1 ... a_order by Burg's method (Marple 1980); a_0 = 1 is left out.

    A frame of silence has all coefficients 0, and a frame that is predicted to its last digit (a pure tone)
    has no more coefficients than that took.
    """
    slices = (slice(row, row + LPC_ROWS) for row in range(0, len(frames), LPC_ROWS))
    return np.concatenate([_burg(frames[rows], order) for rows in slices])


def _burg(frames: Frames | Block, order: int) -> Frames:
    signal = np.ascontiguousarray(frames.T, dtype=np.float64)  # time runs down: each step is along whole rows
    forward, backward = signal[1:].copy(), signal[:-1].copy()
    rooms = np.empty_like(forward), np.empty_like(forward)
    power = np.square(forward).sum(axis=0) + np.square(backward).sum(axis=0)
    enough = power * EXHAUSTED
    out = np.zeros((order + 1, len(frames)))
    out[0] = 1
    for step in range(order):
        room, other = (room[: len(forward)] for room in rooms)
        left = power > enough
        together = np.multiply(forward, backward, out=room).sum(axis=0)
        reflection = np.where(left, -2 * together / np.where(left, power, 1), 0)
        out[1 : step + 2] += reflection * out[step::-1]
        np.multiply(backward, reflection, out=room)
        backward += np.multiply(forward, reflection, out=other)
        forward += room
        power = (1 - reflection**2) * power - backward[-1] ** 2 - forward[0] ** 2
        forward, backward = forward[1:], backward[:-1]
    return out[1:].T


def lpcc(coefficients: Frames, n_lpcc: int) -> Frames:
    """Cepstrum c_1 ... c_n of the linear predictor 1 / A(z)."""
    n_rows, order = coefficients.shape
    cepstrum = np.zeros((n_rows, n_lpcc))
    for n in range(1, n_lpcc + 1):
        if n <= order:
            cepstrum[:, n - 1] = -coefficients[:, n - 1]
        for k in range(max(1, n - order), n):
            cepstrum[:, n - 1] -= (k / n) * cepstrum[:, k - 1] * coefficients[:, n - k - 1]
    return cepstrum


def formants(frames: Frames | Block, sample_rate_hz: int, order: int, n_formants: int) -> Frames:
    """The lowest resonances of the vocal tract in kHz: roots of the predictor. 0 where there are fewer.

    The frame is pre-emphasised and Hamming-windowed; a root counts when it is above 90 Hz and narrower than
    500 Hz.
    """
    emphasised = frames.astype(np.float64)
    emphasised[:, 1:] -= FORMANT_PRE_EMPHASIS * frames[:, :-1]
    coefficients = lpc(emphasised * np.hamming(frames.shape[1]), order)
    companion = np.zeros((len(frames), order, order))
    companion[:, 0] = -coefficients
    companion[:, 1:, :-1] = np.eye(order - 1)
    roots = torch.linalg.eigvals(torch.from_numpy(companion)).numpy()
    hertz = np.angle(roots) * (sample_rate_hz / (2 * math.pi))
    bandwidth = -np.log(np.maximum(np.abs(roots), TINY)) * (sample_rate_hz / math.pi)
    wanted = (hertz > FORMANT_LOW_HZ) & (bandwidth < FORMANT_MAX_BANDWIDTH_HZ) & (roots.imag > 0)
    lowest = np.sort(np.where(wanted, hertz, np.inf), axis=1)[:, :n_formants] / 1000
    return np.where(np.isinf(lowest), 0.0, lowest)


def pitch(frames: Block, sample_rate_hz: int, low_hz: float, high_hz: float, padded: Block) -> Block:
    """Natural logarithm of the fundamental frequency in Hz, and how periodic the frame is, 0 to 1.

    YIN (de Cheveigne and Kawahara 2002) in librosa 0.11's form, whose difference function is made of the
    whole frame's autocorrelation. The frequency is a guess even in a frame without pitch: look at the
    periodicity, which is 1 less the normalised difference, and 0 in silence. `padded` is room for some of the
    frames at a time, `fast_size` wide and zero beyond them; it may be used again.
    """
    window = frames.shape[1]
    shortest, longest = period_range(window, sample_rate_hz, low_hz, high_hz)
    samples, correlation = _autocorrelation(frames, longest, padded)
    difference = np.empty_like(samples)
    loops.difference(samples, correlation, difference)
    difference = difference[shortest - 1 :]
    silent = correlation[0] < SILENCE_POWER * window
    chosen = np.where(silent, 0, _first_trough(difference))  # else rounding would choose
    offset, depth = np.empty((2, len(chosen)), dtype=np.float32)
    loops.vertices(difference, chosen, offset, depth)
    out = np.empty((len(chosen), 2), dtype=np.float32)
    out[:, 0] = np.log(sample_rate_hz / (shortest + chosen + offset))
    out[:, 1] = np.where(silent, 0, np.clip(1 - depth, 0, 1))
    return out


def period_range(window: int, sample_rate_hz: int, low_hz: float, high_hz: float) -> tuple[int, int]:
    """Returns the shortest and the longest period looked at, in samples; at least three apart."""
    longest = min(math.ceil(sample_rate_hz / max(low_hz, 1.0)), window - 1)
    return min(max(1, math.floor(sample_rate_hz / max(high_hz, 1.0))), longest - 3), longest


def _autocorrelation(frames: Block, longest: int, padded: Block) -> tuple[Block, Block]:
    """Returns the frames' first `longest` samples, and their autocorrelation, a row a lag from 0 to `longest`."""
    samples = np.empty((longest, len(frames)), dtype=np.float32)
    out = np.empty((longest + 1, len(frames)), dtype=np.float32)
    for first in range(0, len(frames), len(padded)):
        rows = slice(first, first + len(padded))
        padded[:, : frames.shape[1]] = frames[rows]
        loops.transposed(padded, samples[:, rows])
        spectrum = torch.fft.rfft(torch.from_numpy(padded))
        loops.square_in_place(spectrum.numpy())
        loops.transposed(torch.fft.irfft(spectrum, n=padded.shape[1]).numpy(), out[:, rows])
    return samples, out


@lru_cache
def fast_size(least: int) -> int:
    """Returns the smallest even product of a power of two and 1, 3 or 5 that is at least `least`."""
    sizes = (factor << shift for shift in range(1, 20) for factor in (1, 3, 5))
    return min(size for size in sizes if size >= least)


def _first_trough(difference: Block) -> Places:
    """Returns each column's first local minimum below the threshold, else its (first) global minimum."""
    n_frames = difference.shape[1]
    least = np.full(n_frames, np.inf, dtype=np.float32)
    lowest, chosen = np.zeros(n_frames, dtype=np.int64), np.full(n_frames, -1)
    loops.first_trough(difference, TROUGH, least, lowest, chosen)
    return np.where(chosen < 0, lowest, chosen)
