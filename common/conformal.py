"""Sets of emotions instead of one: as small as they can be while the truth is in nine of ten.

    threshold = threshold_of(scores_of_truth, speakers, level=0.9, units="speakers")
    sets = sets_of(log_probs, threshold, score="least_ambiguous")

Guarantees:
  - For a new recording of a new voice the truth is in the set with probability at least `level`, averaged over voices,
    if the voices of calibration and the new one are exchangeable (`units="speakers"`).
  - A set is never empty: the most probable emotion scores 0 and is always in it, and thresholds know that it is.
  - Where there are too few voices to promise anything, sets hold every emotion.

Recordings of one voice are alike, so voices are the exchangeable unit, not recordings. With `units="speakers"` each
voice weighs the same and one more, unknown, voice is counted as if it missed everything (Dunn, Wasserman and Ramdas
2022; Lee, Barber and Willett 2023). With K voices that asks (K + 1) / K times the level of those we have, 94.7 % for
19: coverage is then above 90 % by up to 1 / (K + 1). `units="recordings"` is what is usually done, close to the level
on average over recordings and without a promise for a new voice; both are reported.

| score             | of a class that is not the most probable                     | sets                       |
|-------------------|--------------------------------------------------------------|----------------------------|
| `least_ambiguous` | 1 - its probability (Sadinle, Lei and Wasserman 2019)         | smallest on average        |
| `adaptive`        | all that is more probable, together (Romano et al. 2020)      | larger for hard recordings |

Cross-conformal: the threshold of a fold comes from the speakers of the other folds, each scored by a model that had
not heard him (`calibration.py` says what that leaves open). Several models' scores meet in one threshold, so the
guarantee above is approximate there; the measured coverage stands beside it.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sottovoce.common.calibration import Counts, Flags, Floats

Score = Literal["least_ambiguous", "adaptive"]
Units = Literal["speakers", "recordings"]
LEVEL = 0.9


def class_scores(log_probs: npt.NDArray[np.floating[Any]], score: Score) -> Floats:
    """Returns how strange each class would be as the truth, (n, classes) in [0, 1].

    >>> class_scores(np.log([[0.5, 0.3, 0.2]]), "adaptive").round(2).tolist()
    [[0.0, 0.5, 0.8]]
    """
    probs = np.exp(np.asarray(log_probs, np.float64))
    order = np.argsort(-probs, axis=1, kind="stable")
    ordered = np.take_along_axis(probs, order, axis=1)
    found = 1.0 - ordered if score == "least_ambiguous" else np.cumsum(ordered, axis=1) - ordered
    found[:, 0] = 0.0
    scores = np.empty_like(found)
    np.put_along_axis(scores, order, found, axis=1)
    return scores


def threshold_of(
    scores: Floats, speakers: Counts, *, level: float = LEVEL, units: Units = "speakers"
) -> float:
    """Returns the largest score that a set takes in, from the scores of the truth; infinite where all must go in.

    Raises:
        ValueError: there are no scores, or `level` is not in (0, 1).
    """
    if not len(scores) or not 0.0 < level < 1.0:
        raise ValueError(f"Expected scores, and level={level} in (0, 1); came {len(scores)} scores.")
    _, unit, sizes = np.unique(speakers, return_inverse=True, return_counts=True)
    if units == "speakers":
        weights = 1.0 / sizes[unit] / (len(sizes) + 1)
    else:
        weights = np.full(len(scores), 1.0 / (len(scores) + 1))
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order])
    place = int(np.searchsorted(reached, level - 1e-12))  # sums of weights are exact to rounding only
    return float(scores[order[place]]) if place < len(order) else float("inf")


def sets_of(log_probs: npt.NDArray[np.floating[Any]], threshold: float | Floats, score: Score) -> Flags:
    """Returns which classes are in each recording's set, (n, classes). `threshold` is one, or one a row."""
    scores = class_scores(log_probs, score)
    return np.asarray(scores <= np.reshape(np.asarray(threshold, np.float64), (-1, 1)) + 1e-12)


def cross_thresholds(
    scores: Floats, speakers: Counts, fold: Counts, *, level: float = LEVEL, units: Units = "speakers"
) -> dict[int, float]:
    """Returns each fold's threshold, from the speakers of all other folds of one arm and seed.

    `scores` are of the truth, (n,), or (folds, n) where each fold scores the others at its own temperature; rows of
    folds are in order.

    Raises:
        ValueError: there is one fold only.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError("Expected answers of at least two folds, to calibrate one by the others; came one.")
    by_fold = np.broadcast_to(scores, (len(folds), len(fold)))
    found = {}
    for one, row in zip(folds, by_fold, strict=True):
        others = fold != one
        found[int(one)] = threshold_of(row[others], speakers[others], level=level, units=units)
    return found
