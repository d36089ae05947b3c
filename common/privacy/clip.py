"""A patient's influence, bounded: clip in floats, round to a public grid, check again in integers.

Guarantees:
  - `clip`: the norm of every row is at most the bound, for every finite input, in exact arithmetic.
  - `clip`: direction is unchanged, and a row inside the ball (by 1e-9) is returned as it is; times its scale of at
    most 1, where rows have scales.
  - `quantised_sum`: every row's integer vector v has |v|^2 <= floor((bound / grid)^2), checked exactly.
  - A row with a number that is not finite counts as zeros, whole: what becomes of a patient depends on that patient
    alone. (A refusal would tell whoever chose the weights that such a patient is there, for nothing.)

Why the integer check is exact although it runs in float64 (fast, and BLAS may add in any order): bound / grid is
at most 2^26, so a row inside the ball has |v|^2 <= 2^52. Squares and partial sums of such a row are integers
below 2^53: float64 holds them without rounding. A row outside the ball has a partial sum above 2^52; rounding
to nearest is monotone, so its float sum is above the limit too. The column sums stay below 2^53 for up to 2^27
rows.

| row                              | `clip`                | `quantised_sum`                                 |
|----------------------------------|-----------------------|-------------------------------------------------|
| zero                             | as it is              | zeros                                           |
| inside the ball                  | as it is              | each coordinate rounded towards zero            |
| on the sphere or outside         | scaled to 1 - 1e-9    | the same; again with 1 - 1e-9 if the check fails |
| NaN, infinity                    | zeros                 | zeros                                           |
| no row at all                    | no row                | zeros                                           |

>>> clipped = clip(PatientGradients(values=np.array([[3.0, 4.0]], dtype=np.float32)), 1.0)
>>> quantised_sum(clipped, 1 / 1024).values.tolist()
[614, 819]
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy.stages import ClippedPatientGradients, PatientGradients, QuantisedSum

MOST_CELLS = 2**26
MOST_ROWS = 2**27
# Above the error of a float64 sum of squares: blocks of 1,024, at most 2^40 of them.
SHRINK = 1 - 2.0**-30
BLOCK_CELLS = 1 << 16  # float64 numbers in flight: half a megabyte stays in the cache


def clip(gradients: PatientGradients, bound: float) -> ClippedPatientGradients:
    """Scales each patient's gradient so that its L2 norm is at most `bound`.

    Raises:
        PrivacyError: not a float32 matrix, or a bound out of range.
    """
    values = gradients.values
    if values.ndim != 2 or values.dtype != np.float32:
        raise PrivacyError(f"Expected a float32 matrix of gradients; came {values.ndim}-d {values.dtype}.")
    if not 1e-12 <= bound <= 1e12:
        raise PrivacyError(f"Expected bound={bound} in [1e-12, 1e12].")
    squares = _square_norms(values)  # of float32: no overflow in float64, and no underflow to zero
    strange = ~np.isfinite(squares)
    if strange.any():
        values = np.where(strange[:, None], np.float32(0.0), values)
        squares[strange] = 0.0
    norms = np.sqrt(squares)
    outside = norms > bound * SHRINK
    factors = np.ones(len(values))
    factors[outside] = bound / norms[outside] * SHRINK
    if gradients.scales is not None:
        if (
            gradients.scales.shape != factors.shape
            or not ((gradients.scales >= 0) & (gradients.scales <= 1)).all()
        ):
            raise PrivacyError("Expected one scale in [0, 1] for each row of gradients; came others.")
        factors *= gradients.scales
    return ClippedPatientGradients(values=values, factors=factors, clip_norm=bound)


def quantised_sum(clipped: ClippedPatientGradients, grid_step: float) -> QuantisedSum:
    """Rounds each clipped row to the grid, towards zero, checks it in integers, and adds the rows.

    Raises:
        PrivacyError: the grid is too fine or too coarse for exact sums, or a row cannot be brought inside.
    """
    cells = Fraction(clipped.clip_norm) / Fraction(grid_step)
    if not 1 <= cells <= MOST_CELLS or len(clipped.values) > MOST_ROWS:
        raise PrivacyError(
            f"Expected clip_norm / grid in [1, 2^26] and at most 2^27 rows; came {float(cells):g}."
        )
    limit = math.floor(cells * cells)
    factors = clipped.factors / grid_step
    total, squares = _rounded(clipped.values, factors)
    for _ in range(4):
        # `not <=` also catches what is not a number.
        outside = np.flatnonzero(~(squares <= limit))
        if not len(outside):
            return QuantisedSum(values=total, clip_norm=clipped.clip_norm, grid_step=grid_step)
        rows = clipped.values[outside]
        total -= _rounded(rows, factors[outside])[0]
        factors[outside] *= SHRINK
        again, squares[outside] = _rounded(rows, factors[outside])
        total += again
    raise PrivacyError("A patient's gradient was handed over unclipped; nothing was released.")


def _square_norms(values: NDArray[np.float32]) -> NDArray[np.float64]:
    n_rows, width = values.shape
    squares, buffer = np.zeros(n_rows), np.empty((n_rows, 1024))
    for start in range(0, width, 1024):
        block = values[:, start : start + 1024]
        exact = buffer[:, : block.shape[1]]
        np.copyto(exact, block)
        squares += np.vecdot(exact, exact)
    return squares


def _rounded(
    values: NDArray[np.float32], factors: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the sum over rows of trunc(factor * row), and each rounded row's squared norm."""
    n_rows, width = values.shape
    total, squares = np.zeros(width, dtype=np.int64), np.zeros(n_rows)
    columns = max(16, min(4096, BLOCK_CELLS // max(1, n_rows)))
    buffer, ones = np.empty((n_rows, columns)), np.ones(n_rows)
    for start in range(0, width, columns):
        block = values[:, start : start + columns]
        cells = buffer[:, : block.shape[1]]
        np.copyto(cells, block)  # and then multiplied: numpy casts and multiplies in one go at half the speed
        cells *= factors[:, None]
        np.trunc(cells, out=cells)
        squares += np.vecdot(cells, cells)
        total[start : start + columns] = ones @ cells
    return total, squares
