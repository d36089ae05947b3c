"""A second accountant, written by hand: the privacy loss of the Poisson-sampled Gaussian, convolved by FFT.

It shares no code with `common/privacy/accountant.py` nor with the library below it, and runs on a grid ten times
finer. Losses are rounded to the nearest cell, so it is an estimate (to about 1e-6), neither bound.

>>> round(epsilon([(2.0, 1 / 16, 320)], 1e-5), 2)
2.56
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import log_ndtr, ndtr

GRID = 1e-5
Array = np.ndarray
Group = tuple[float, float, int]  # noise multiplier, sampling probability, steps


def epsilon(
    groups: Sequence[Group], delta: float, *, grid: float = GRID, reach: float | None = None
) -> float:
    """Returns the epsilon of all groups together: the larger of removing and adding one unit.

    `reach` bounds the loss that is kept; by default so that the tail beyond has less than delta / 10^6.
    """
    width = _reach(groups, delta) if reach is None else reach
    return max(0.0, *(_one_way(groups, delta, cells, grid, width) for cells in (_removal, _adding)))


def _one_way(
    groups: Sequence[Group],
    delta: float,
    cells: Callable[[Group, Array], Array],
    grid: float,
    reach: float,
) -> float:
    half = next_fast_len(math.ceil(reach / grid), real=True)
    edges = (np.arange(-half, half + 1) - 0.5) * grid
    spectrum: Array = np.ones(half + 1, dtype=complex)
    for group in groups:
        below = cells(group, edges)
        mass = np.diff(below, append=below[-1])
        # Loss 0 at index 0, so that a product of spectra is a sum of losses, around the ring.
        spectrum = spectrum * rfft(np.roll(mass[: 2 * half], -half)) ** group[2]
    mass = np.roll(irfft(spectrum, 2 * half), half)
    losses = (np.arange(2 * half) - half) * grid
    positive = losses > 0
    return _epsilon_at(losses[positive], np.maximum(mass[positive], 0.0), delta)


def _epsilon_at(losses: Array, mass: Array, delta: float) -> float:
    """Solves sum over l > e of mass * (1 - exp(e - l)) = delta for e >= 0."""
    above = np.cumsum(mass[::-1])[::-1]
    shrunk = np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
    at_cell = above - np.exp(losses) * shrunk
    first = int(np.searchsorted(-at_cell, -delta))  # the first cell with at most delta above it
    if first == 0:
        return float(losses[0])
    if first == len(losses):
        raise ValueError("The loss reaches beyond the grid: take a larger reach.")
    return float(np.log((above[first] - delta) / shrunk[first]))


def _removal(group: Group, edges: Array) -> Array:
    """P(loss <= edge) where the outcome comes from the mixture, and the loss is log(mixture / normal)."""
    deviation, q, _ = group
    x = _outcome(edges, deviation, q)
    below: Array = (1 - q) * ndtr(x / deviation) + q * ndtr((x - 1) / deviation)
    return below


def _adding(group: Group, edges: Array) -> Array:
    """P(loss <= edge) where the outcome comes from the normal, and the loss is log(normal / mixture)."""
    deviation, q, _ = group
    below: Array = np.exp(log_ndtr(-_outcome(-edges, deviation, q) / deviation))
    return below


def _outcome(losses: Array, deviation: float, q: float) -> Array:
    """Returns x with log(1 - q + q exp((2 x - 1) / (2 s^2))) = loss; minus infinity where there is none."""
    inside = (np.expm1(losses) + q) / q
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(inside > 0, np.log(np.maximum(inside, 1e-300)), -np.inf)
    x: Array = deviation**2 * logs + 0.5
    return x


def _reach(groups: Sequence[Group], delta: float) -> float:
    """Chernoff with integer moments of the mixture's likelihood ratio."""
    best = math.inf
    for order in range(2, 200):
        moment = sum(steps * _log_moment(order, s, q) for s, q, steps in groups)
        best = min(best, (moment - math.log(delta * 1e-6)) / (order - 1))
    return best + 1.0


def _log_moment(order: int, deviation: float, q: float) -> float:
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (k * math.log(q) if k else 0.0)
        + ((order - k) * math.log1p(-q) if order > k and q < 1 else (-math.inf if order > k else 0.0))
        + k * (k - 1) / (2 * deviation**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
