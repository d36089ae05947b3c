"""How well an attack does, with intervals: area under the curve, true positives at few false ones.

>>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
0.875
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.common.streams import stream

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
LEVEL = 0.95
N_DRAWS = 500
CHANCE_AUC = 0.5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its interval at 95 %."""

    value: float
    low: float
    high: float


def down(epsilon: float) -> str:
    """Returns a lower bound with two decimals, rounded downwards: what is shown was proved.

    >>> down(2.589), down(0.55)
    ('2.58', '0.55')
    """
    return f"{math.floor(round(100 * epsilon, 6)) / 100:.2f}"


def auc(positive: Floats, negative: Floats) -> float:
    """Returns the probability that a positive scores above a negative; ties count one half."""
    if not (len(positive) and len(negative)):
        return float("nan")  # a draw of people may lack one kind; `resampled` leaves it out
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(negative))


def true_positives_at(positive: Floats, negative: Floats, false_positives: float) -> float:
    """Returns the share of positives above a threshold that at most so large a share of negatives exceeds."""
    n_above = int(false_positives * len(negative))
    threshold = np.sort(negative)[::-1][n_above]
    return float((positive > threshold).mean())


def resampled(
    sizes: Sequence[int], statistic: Callable[[list[Indices]], float], *, seed: int = 0
) -> Estimate:
    """Returns a statistic of people, with the interval of resampling people (percentiles).

    `sizes` are the independent groups of people that were attacked; `statistic` is given the people of each group, by
    number. All that one person gave is drawn with that person: an interval over pairs or trials would be too narrow.
    """
    rng = stream(seed, "audit/intervals", *sizes)
    draws = [statistic([rng.integers(n, size=n) for n in sizes]) for _ in range(N_DRAWS)]
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=statistic([np.arange(n) for n in sizes]), low=float(low), high=float(high))


def auc_of_pairs(scores: Floats, people: Indices) -> float:
    """Returns the AUC of a square matrix's diagonal (the same person twice) over the rest, among `people`."""
    drawn = scores[np.ix_(people, people)]
    others = people[:, None] != people[None, :]  # a person who was drawn twice is not another person
    return auc(drawn.diagonal(), drawn[others])
