"""What a patient really gives away in small cases: sums of discrete Gaussians, convolved directly.

Direct convolution adds positive numbers only, so that tails keep their relative precision; an FFT would not.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Law = NDArray[np.float64]


def discrete_gaussian(variance: float, reach: int) -> Law:
    """Probabilities of -reach ... reach."""
    x = np.arange(-reach, reach + 1.0)
    weights = np.exp(-(x**2) / (2 * variance))
    law: Law = weights / weights.sum()
    return law


def shares(variance: float, n_shares: int, reach: int) -> Law:
    """The law of a sum of so many shares, on -reach ... reach."""
    one = total = discrete_gaussian(variance, reach)
    for _ in range(n_shares - 1):
        wide = np.convolve(total, one)
        total = wide[len(wide) // 2 - reach : len(wide) // 2 + reach + 1]
    law: Law = total / total.sum()
    return law


def views(
    variance: float, n_shares: int, vectors: Sequence[Sequence[int]], sampling_prob: float, reach: int
) -> tuple[Law, Law]:
    """The law of the sum without a patient, and with one who has these vectors, each drawn by its own coin."""
    axis = shares(variance, n_shares, reach)
    n_dims = len(vectors[0])
    margin = max(sum(abs(v[i]) for v in vectors) for i in range(n_dims))  # what a shift brings round the end
    inner = slice(margin, len(axis) - margin)

    def shifted(vector: Sequence[int]) -> Law:
        joint = np.ones(())
        for shift in vector:
            joint = np.multiply.outer(joint, np.roll(axis, shift)[inner])
        return joint

    without = shifted([0] * n_dims)
    mixed = np.zeros_like(without)
    for chosen in np.ndindex(*[2] * len(vectors)):
        weight = math.prod(sampling_prob if one else 1 - sampling_prob for one in chosen)
        mixed += weight * shifted(
            [sum(one * v[i] for one, v in zip(chosen, vectors, strict=True)) for i in range(n_dims)]
        )
    return without, mixed


def divergence(one: Law, other: Law, order: float) -> float:
    """The Renyi divergence of `one` from `other`."""
    logs = order * np.log(one) + (1 - order) * np.log(other)
    top = float(logs.max())
    return (top + math.log(np.exp(logs - top).sum())) / (order - 1)


def both_ways(views: tuple[Law, Law], order: float) -> float:
    """The larger of removing and adding."""
    without, mixed = views
    return max(divergence(without, mixed, order), divergence(mixed, without, order))


def epsilon(views: tuple[Law, Law], delta: float, n_steps: int) -> float:
    """The epsilon of so many steps (1e-6 below, at most), by looking at every outcome: the larger of both ways."""
    one, other = (law.ravel() for law in views)
    firsts, seconds = np.ones(1), np.ones(1)
    for _ in range(n_steps):
        firsts, seconds = np.outer(firsts, one).ravel(), np.outer(seconds, other).ravel()
    return max(_solved(firsts, seconds, delta), _solved(seconds, firsts, delta))


def _solved(one: Law, other: Law, delta: float) -> float:
    low, high = 0.0, 100.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        spent = np.maximum(one - math.exp(middle) * other, 0).sum()
        low, high = (middle, high) if spent > delta else (low, middle)
    return low
