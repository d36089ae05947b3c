"""Probabilities that mean what they say: one temperature, and how far from the truth they are before and after.

    temperature = fit_temperature(log_probs, truth)
    confidence = np.exp(tempered(log_probs, temperature)).max(axis=1)
    expected_error(reliability(confidence, correct))

Guarantees:
  - A temperature changes no answer, only how sure it sounds.
  - `cross_temperatures` gives each fold a temperature that was fitted on answers to speakers of the other folds alone:
    no answer to a tested speaker, and no label of one, is in the fit of that speaker's own temperature.
  - Bins hold equally many recordings (give or take one), so that no bin's accuracy rests on a handful.
  - Everything is deterministic; rows may come in any order that is the same each time.

**Where calibration data come from**, with three folds, for the speakers of fold 0:

| step                              | learns from labels of | and fold 0's speakers                              |
|-----------------------------------|-----------------------|----------------------------------------------------|
| model 0, which answers fold 0     | folds 1 and 2         | are unknown to it                                  |
| model 1, which answers fold 1     | folds 0 and 2         | were trained on                                    |
| model 2, which answers fold 2     | folds 0 and 1         | were trained on                                    |
| temperature 0, on those answers   | folds 1 and 2         | are not in the fit, but in the weights behind it   |
| thresholds of sets, of "not sure" | folds 1 and 2         | the same; the answers are those at temperature 0   |

So two things are short of a clean split. A tested speaker has, by recordings and labels, helped to train the models
whose answers calibrate (never the one that answers that speaker). And the rows that a temperature was fitted on are
used once more for the thresholds. Both are a number or two, fitted to hundreds of answers to other people: too few to
carry a person, but no proof says so. An inner split of each training set would be clean, and would cost one more
training for every fold; this needs no further training and no further split.

**What binning does to an error.** The expected calibration error is a mean of absolute values, so it is above zero even
for a perfect model: `if_perfect` says by how much, for as many recordings with these confidences, were they
independent. Equal-mass bins keep that bias small and even; the interval (`calibrated.py`) takes it out.

Guo et al. 2017 (temperature, ECE); Kumar, Liang and Ma 2019, Roelofs et al. 2022 (bias of binning, equal mass).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

N_BINS = 15
COLDEST, HOTTEST = 0.05, 20.0  # a temperature beyond these says that the model is broken, not how


def tempered(log_probs: npt.NDArray[np.floating[Any]], temperature: float | Floats) -> Floats:
    """Returns log probabilities (n, classes) at a temperature, one for all rows or one each.

    >>> np.exp(tempered(np.log([[0.8, 0.2]]), 2.0)).round(3).tolist()
    [[0.667, 0.333]]
    """
    scaled = np.asarray(log_probs, np.float64) / np.reshape(np.asarray(temperature, np.float64), (-1, 1))
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    tempered_: Floats = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return tempered_


def negative_log_likelihood(log_probs: Floats, truth: Counts) -> float:
    """Returns the mean of minus the logarithm of what the truth was given."""
    return float(-log_probs[np.arange(len(truth)), truth].mean())


def fit_temperature(log_probs: npt.NDArray[np.floating[Any]], truth: Counts) -> float:
    """Returns the temperature in [COLDEST, HOTTEST] of the smallest negative log likelihood.

    The likelihood is concave in 1 / temperature, so that its slope has one zero at most.

    Raises:
        ValueError: there are no rows.
    """
    if not len(truth):
        raise ValueError("Expected answers to fit a temperature to; came none.")
    from scipy.optimize import brentq  # here, since start-up does not need it

    values = np.asarray(log_probs, np.float64)
    given = values[np.arange(len(truth)), truth].mean()

    def slope(coldness: float) -> float:
        """Returns the slope of the mean log likelihood in 1 / temperature, at a temperature of exp(-coldness)."""
        probs = np.exp(tempered(values, np.exp(-coldness)))
        return float(given - (probs * values).sum() / len(values))

    low, high = float(np.log(1.0 / HOTTEST)), float(np.log(1.0 / COLDEST))
    if slope(low) <= 0.0:  # too sure even there
        return HOTTEST
    if slope(high) >= 0.0:
        return COLDEST
    return float(np.exp(-brentq(slope, low, high, xtol=1e-10)))


def cross_temperatures(
    log_probs: npt.NDArray[np.floating[Any]], truth: Counts, fold: Counts
) -> dict[int, float]:
    """Returns each fold's temperature, fitted on the rows of all other folds of one arm and seed.

    Raises:
        ValueError: there is one fold only, so nobody is left to fit on.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError("Expected answers of at least two folds, to calibrate one by the others; came one.")
    return {int(one): fit_temperature(log_probs[fold != one], truth[fold != one]) for one in folds}


@dataclass(frozen=True, eq=False)
class Reliability:
    """For each bin of confidence: recordings, their summed confidence, how many answers were right. They add."""

    n: Floats
    confidence: Floats
    right: Floats
    noise: Floats  # summed p (1 - p): the variance of `right`, were the confidences true


def equal_mass_bins(confidence: Floats, n_bins: int = N_BINS) -> Counts:
    """Returns the bin of each recording: the least sure n-th in bin 0, and so on.

    >>> equal_mass_bins(np.array([0.9, 0.2, 0.4, 0.3]), 2).tolist()
    [1, 0, 1, 0]
    """
    bins = np.empty(len(confidence), np.int64)
    for index, rows in enumerate(np.array_split(np.argsort(confidence, kind="stable"), n_bins)):
        bins[rows] = index
    return bins


def reliability(confidence: Floats, correct: Flags, n_bins: int = N_BINS) -> Reliability:
    """Returns the reliability table over equal-mass bins."""
    bins = equal_mass_bins(confidence, n_bins)

    def total(values: npt.NDArray[Any]) -> Floats:
        return np.bincount(bins, weights=values.astype(np.float64), minlength=n_bins).astype(np.float64)

    n = np.bincount(bins, minlength=n_bins).astype(np.float64)
    return Reliability(n, total(confidence), total(correct), total(confidence * (1.0 - confidence)))


def expected_error(table: Reliability) -> float:
    """Returns the expected calibration error: the mean distance of accuracy from confidence, by recordings."""
    return float(np.abs(table.right - table.confidence).sum() / table.n.sum())


def if_perfect(table: Reliability) -> float:
    """Returns the expected calibration error that chance alone leaves, were every confidence true.

    A bin's number of right answers then spreads about the sum of its confidences; a normal's mean size is
    sqrt(2 / pi) deviations.
    """
    return float(np.sqrt(2.0 / np.pi) * np.sqrt(table.noise).sum() / table.n.sum())


def confidences(log_probs: npt.NDArray[np.floating[Any]], *, by: str = "probability") -> Floats:
    """Returns how sure each answer is: its probability, or with `by="margin"` its lead over the second.

    Raises:
        ValueError: `by` is another word.
    """
    ordered = np.sort(np.exp(np.asarray(log_probs, np.float64)), axis=1)
    if by == "probability":
        return ordered[:, -1]
    if by == "margin":
        return np.asarray(ordered[:, -1] - ordered[:, -2])
    raise ValueError(f"Expected by='probability' or 'margin'; came {by!r}.")


def accuracy_at(
    coverages: Sequence[float], confidence: Floats, correct: Flags, weights: Floats | None = None
) -> Floats:
    """Returns the accuracy of the surest share of the answers, for each coverage in (0, 1].

    `weights` (..., n) counts each answer so many times, as draws of speakers do; the result is (..., coverages). The
    answer at the border counts in part, so that the share is exact.

    >>> right = np.array([True, True, False, False])
    >>> accuracy_at([0.5, 1.0], np.array([0.9, 0.6, 0.8, 0.3]), right).tolist()
    [0.5, 0.5]
    """
    order = np.argsort(-confidence, kind="stable")
    counted = np.ones(len(order)) if weights is None else weights[..., order]
    before = np.cumsum(counted, axis=-1) - counted
    total = counted.sum(axis=-1)
    found = []
    for coverage in coverages:
        kept = np.clip(coverage * total[..., None] - before, 0.0, counted)
        found.append((kept @ correct[order].astype(np.float64)) / kept.sum(axis=-1))
    return np.stack(found, axis=-1)
