"""Compiled loops of the extractor: what would be many passes over memory as array operations.

Columns are frames here, so that the inner loop goes over neighbours in memory that do not wait for each other.
Each function is plain Python that numba compiles at its first call, never at import: a process that computes no
features does not pay for it. The machine code is kept beside this file, or in the user's cache where that folder
is read-only; where neither can be written, every process compiles anew, which takes seconds.

Guarantees:
  - The compiled function computes what the Python function computes, in its order: no sum is rearranged.
  - A frame's result depends on that frame alone.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]
TILE = 16  # float32 values to a cache line
TINY = 1e-37  # keeps a silent frame's quotient finite
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Returns `function`, compiled when it is first called."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return _machine_code(function)(*arguments)

    return cast("Function", call)


@lru_cache
def _machine_code(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba

    try:
        return cast("Callable[..., Any]", numba.njit(function, cache=True, error_model="numpy"))
    except RuntimeError:  # no folder for the machine code can be written
        return cast("Callable[..., Any]", numba.njit(function, error_model="numpy"))


@compiled
def windowed(samples: Block, start: int, hop: int, window: Sums, out: Sums) -> None:
    """Puts the frames of a signal, each times a window, into the first columns of `out`."""
    for row in range(out.shape[0]):
        frame, place = samples[start + row * hop : start + row * hop + len(window)], out[row]
        for column in range(len(window)):
            place[column] = frame[column] * window[column]


@compiled
def squared(spectrum: npt.NDArray[np.complex128], power: Block) -> None:
    """Puts the squared magnitudes of a spectrum, whose rows are frames, into `power`, whose columns are.

    The number of frames is a multiple of `TILE`.
    """
    n_columns = spectrum.shape[1]
    tile = np.empty((TILE, n_columns), np.float32)
    for first in range(0, spectrum.shape[0], TILE):
        for row in range(TILE):
            values, squares = spectrum[first + row], tile[row]
            for column in range(n_columns):
                value = values[column]
                squares[column] = value.real * value.real + value.imag * value.imag
        for column in range(n_columns):
            out = power[column, first : first + TILE]
            for row in range(TILE):
                out[row] = tile[row, column]


@compiled
def transposed(rows: Block, out: Block) -> None:
    """Puts the first columns of `rows`, a multiple of `TILE` in number, into `out`, a row each."""
    for first in range(0, rows.shape[0], TILE):
        tile = rows[first : first + TILE]
        for column in range(out.shape[0]):
            place = out[column, first : first + TILE]
            for row in range(TILE):
                place[row] = tile[row, column]


@compiled
def band_sums(by_bin: Block, filters: Block, firsts: Places, lasts: Places, out: Block) -> None:
    """Adds to `out`, a row a band, the bins weighted by a column of `filters`, from the first to the last."""
    for band in range(len(firsts)):
        total = out[band]
        for row in range(firsts[band], lasts[band]):
            weight, here = filters[row, band], by_bin[row]
            for frame in range(len(here)):
                total[frame] += weight * here[frame]


@compiled
def square_in_place(spectrum: npt.NDArray[np.complex64]) -> None:
    """Replaces a spectrum by its squared magnitudes, which stay complex: the way back wants them so."""
    for row in range(spectrum.shape[0]):
        for column in range(spectrum.shape[1]):
            value = spectrum[row, column]
            spectrum[row, column] = value.real * value.real + value.imag * value.imag


@compiled
def difference(samples: Block, correlation: Block, out: Block) -> None:
    """Puts YIN's cumulative mean normalised difference into `out`: row r is lag r + 1.

    `correlation` has a row a lag from 0 on. What is summed is half of YIN's difference: the quotient is the same.
    """
    n_lags, n_frames = out.shape
    energy, total = np.zeros(n_frames, np.float32), np.zeros(n_frames, np.float32)
    half, tiny = np.float32(0.5), np.float32(TINY)
    power = correlation[0]
    for row in range(n_lags):
        weight, ahead = np.float32(row + 1), correlation[row + 1]
        # librosa leaves the first sample out at lag 1, and only there
        gained, late = samples[row], samples[0]
        share, late_share = (half if row else np.float32(0)), (half if row == 1 else np.float32(0))
        quotient = out[row]
        for frame in range(n_frames):
            here = energy[frame] + share * gained[frame] * gained[frame]
            here += late_share * late[frame] * late[frame]
            unlike = power[frame] - ahead[frame] - here
            so_far = total[frame] + unlike
            quotient[frame] = unlike * weight / (so_far + tiny)
            energy[frame], total[frame] = here, so_far


@compiled
def first_trough(values: Block, threshold: np.float32, least: Block, lowest: Places, chosen: Places) -> None:
    """Puts the row of each column's first local minimum below the threshold into `chosen`, of its least into `lowest`.

    `chosen` stays as it is, negative, where there is none; `least` begins above every value.
    """
    n_places, n_frames = values.shape
    for place in range(n_places):
        # librosa's rule for the ends: the first falls to the second, the last need not rise
        here, before = values[place], values[place - 1 if place else 1]
        after = values[place + 1 if place + 1 < n_places else place]
        for frame in range(n_frames):
            value = here[frame]
            lowest[frame] = place if value < least[frame] else lowest[frame]
            least[frame] = min(value, least[frame])
            trough = (value < threshold) & (value < before[frame]) & (value <= after[frame])
            chosen[frame] = place if trough & (chosen[frame] < 0) else chosen[frame]


@compiled
def weighted_sum(signal: Sums, weights: Sums, step: int, out: Sums) -> None:
    """Adds `signal`, shifted by multiples of `step` and weighted, to `out`."""
    for place in range(len(weights)):
        shifted, weight = signal[place * step : place * step + len(out)], weights[place]
        for column in range(len(out)):
            out[column] += weight * shifted[column]


@compiled
def roll_off(magnitude: Block, share: float, total: Sums, passed: Sums, bins: Places) -> None:
    """Adds to `bins` the first bin up to which a frame has `share` of its magnitude. All three begin at 0."""
    n_bins, n_frames = magnitude.shape
    for row in range(n_bins):
        here = magnitude[row]
        for frame in range(n_frames):
            total[frame] += here[frame]
    for row in range(n_bins):
        here = magnitude[row]
        for frame in range(n_frames):
            passed[frame] += here[frame]
            bins[frame] += passed[frame] < share * total[frame]


@compiled
def extremes(magnitude: Block, bands: Places, valleys: Block, peaks: Block) -> None:
    """Puts each band's least and largest values into `valleys` and `peaks`: a row a band.

    A band is its first row and its last row (excluded).
    """
    for band in range(len(bands)):
        valley, peak, beginning = valleys[band], peaks[band], magnitude[bands[band, 0]]
        for frame in range(len(valley)):
            valley[frame] = peak[frame] = beginning[frame]
        for row in range(bands[band, 0] + 1, bands[band, 1]):
            here = magnitude[row]
            for frame in range(len(valley)):
                valley[frame] = min(valley[frame], here[frame])
                peak[frame] = max(peak[frame], here[frame])


@compiled
def several_extremes(values: Block, low: Block, high: Block) -> None:
    """Puts each column's least values into `low`, its largest into `high`, as many as those have rows.

    `low` begins above every value, `high` below. A value displaced from one place tries the next.
    """
    count, n_frames = low.shape
    smaller, larger = np.empty(n_frames, np.float32), np.empty(n_frames, np.float32)
    for row in range(values.shape[0]):
        here = values[row]
        for frame in range(n_frames):
            smaller[frame] = larger[frame] = here[frame]
        for place in range(count):
            lows, highs = low[place], high[place]
            for frame in range(n_frames):
                value, held = smaller[frame], lows[frame]
                lows[frame], smaller[frame] = min(held, value), max(held, value)
                value, held = larger[frame], highs[frame]
                highs[frame], larger[frame] = max(held, value), min(held, value)


@compiled
def vertices(values: Block, places: Places, offset: Block, depth: Block) -> None:
    """Puts each column's value at `places` into `depth`; into `offset` how far from there a parabola has its vertex.

    The parabola goes through three neighbours; 0 at the ends, and where the vertex is not between them.
    """
    n_places, n_frames = values.shape
    half = np.float32(0.5)
    for frame in range(n_frames):
        place = places[frame]
        depth[frame], offset[frame] = values[place, frame], 0
        if 0 < place < n_places - 1:
            before, here, after = values[place - 1, frame], values[place, frame], values[place + 1, frame]
            bend, slope = after + before - here - here, half * (after - before)
            if abs(slope) < abs(bend):
                offset[frame] = -slope / bend
