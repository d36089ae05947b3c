"""A patient with several records: how much a step that draws each record by itself says about the patient.

The step's sum has N(0, s^2) without the patient, and with it a mixture of N(c, s^2) where c, the number of the
patient's records in the draw, is Binomial(m, q). Gradients that all point one way are the worst case
(Choquette-Choo, Ganesh, Steinke, Thakurta, arXiv 2310.15526, Corollary 4.7).

Guarantees:
  - `delta_of_removal` and `delta_of_adding` are the largest advantage of any test, to 1e-12.

dp-accounting has the same mechanism and finds the threshold of every cell by its own bisection: five minutes
at m = 32. Here all thresholds come from one interpolation and three Newton steps. A threshold that is off by
h costs O(h^2), since the threshold is where the advantage is at its maximum.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import log_ndtr, logsumexp, xlog1py, xlogy

Array = np.ndarray
REACH = 10.1  # deviations: beyond them lies less than exp(-50)


class Mixture:
    """The log ratio of the two distributions, and the advantage at each privacy loss."""

    def __init__(self, deviation: float, sampling_prob: float, n_records: int) -> None:
        m = n_records
        self.deviation = deviation
        self.shifts = np.arange(m + 1.0)
        binomials = [math.lgamma(m + 1) - math.lgamma(c + 1) - math.lgamma(m - c + 1) for c in range(m + 1)]
        self.log_weights: Array = (
            np.array(binomials) + xlogy(self.shifts, sampling_prob) + xlog1py(m - self.shifts, -sampling_prob)
        )

    def loss(self, x: Array) -> Array:
        """Returns log(mixture(x) / normal(x)); it grows with x."""
        return _blockwise(lambda part: logsumexp(self._exponents(part), axis=0), x)

    def cells(self, grid: float) -> Array:
        """Returns the multiples of `grid` that cover the loss of all but exp(-50) of either distribution."""
        reach = REACH * self.deviation
        low, high = self.loss(np.array([-reach, self.shifts[-1] + reach]))
        return np.arange(math.floor(low / grid), math.ceil(high / grid) + 1)

    def delta_of_removal(self, losses: Array) -> Array:
        """sup over sets S of mixture(S) - exp(loss) * normal(S), reached at S = (threshold, infinity)."""
        x = self._threshold(losses)
        above = _blockwise(lambda part: np.exp(self._log_tail(-self._standard(part))), x)
        advantage: Array = np.maximum(above - np.exp(losses + log_ndtr(-x / self.deviation)), 0.0)
        return advantage

    def delta_of_adding(self, losses: Array) -> Array:
        """sup over sets S of normal(S) - exp(loss) * mixture(S), reached at S = (-infinity, threshold)."""
        x = self._threshold(-losses)
        below = _blockwise(lambda part: self._log_tail(self._standard(part)), x)
        advantage: Array = np.maximum(np.exp(log_ndtr(x / self.deviation)) - np.exp(losses + below), 0.0)
        return advantage

    def _threshold(self, losses: Array) -> Array:
        """Returns x with loss(x) = the loss asked for; the nearest end where no x has it."""
        margin = 12 * self.deviation
        n_knots = max(4096, math.ceil(512 * (self.shifts[-1] / self.deviation + 24)))
        knots = np.linspace(-margin, self.shifts[-1] + margin, n_knots)
        x = np.interp(losses, self.loss(knots), knots)
        for _ in range(3):
            step = (losses - self.loss(x)) / np.maximum(_blockwise(self._slope, x), 1e-12)
            x = np.clip(x + np.clip(step, -self.deviation / 8, self.deviation / 8), knots[0], knots[-1])
        threshold: Array = x
        return threshold

    def _slope(self, x: Array) -> Array:
        exponents = self._exponents(x)
        weights = np.exp(exponents - exponents.max(axis=0))
        mean: Array = self.shifts @ weights / weights.sum(axis=0)
        return mean / self.deviation**2

    def _exponents(self, x: Array) -> Array:
        c = self.shifts[:, None]
        exponents: Array = self.log_weights[:, None] + (2 * c * x - c * c) / (2 * self.deviation**2)
        return exponents

    def _log_tail(self, standard: Array) -> Array:
        tail: Array = logsumexp(self.log_weights[:, None] + log_ndtr(standard), axis=0)
        return tail

    def _standard(self, x: Array) -> Array:
        standard: Array = (x - self.shifts[:, None]) / self.deviation
        return standard


def _blockwise(function: Callable[[Array], Array], x: Array) -> Array:
    return np.concatenate([function(x[start : start + 65536]) for start in range(0, len(x), 65536)])
