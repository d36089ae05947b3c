"""Calibration in a private study: two tables of counts in the release of evaluation counts, and what follows from them.

    [evaluation]
    calibration = { bins = 15 }

No probability and no recording leaves a site. Of each withheld recording that is counted, two cells go up by one: how
sure the answer was and whether it was right, and how strange the truth was. The tables stand behind the confusions in
the same vector, under the same noise, masks and charge; a recording is in two tables more, and `counts_norm` says what
that costs. Everything after the release is post-processing.

Guarantees:
  - A recording adds exactly one to one cell of each table, whatever its probabilities.
  - The edges of the bins are public formulas of the number of classes.
  - The threshold of the sets is conservative: the noise is counted against it, at every edge that was looked at, and so
    is one more patient who misses everything, of as few patients as the counts allow.
  - Counts that drown in noise give no figure, not a wrong one.

An answer's *odds* are its probability against an even share of the rest: `log p - log((1 - p) / (classes - 1))`, 0
where the model knows nothing. A temperature divides them; with it the confidence of an answer changes and never the
answer. It is the softmax's own temperature where the other emotions are equally likely.
"""

from collections.abc import Sequence

import numpy as np

from sottovoce.common import calibration
from sottovoce.common.calibration import Counts, Floats
from sottovoce.common.conformal import LEVEL, class_scores
from sottovoce.common.fairness_of_runs import released
from sottovoce.common.privacy_specs import LocalPrivacy, NoPrivacy
from sottovoce.common.run_files import RoundFacts
from sottovoce.common.study import Study
from sottovoce.common.summary import CalibrationError, CountedCalibration

SUREST = 8.0  # odds beyond e^8 are one bin: 99.8 % with 8 classes
STRANGEST = 1e-3  # a truth that was given less is one bin
READABLE = 3.0  # deviations of a total's noise
N_CANDIDATES = 1_201  # temperatures, each half a percent above the last
SURELY = 0.05  # how often noise may make the sets too small, over all edges together


def odds(confidence: Floats, n_classes: int) -> Floats:
    """Returns the log odds of answers against an even share of the rest; at least 0.

    >>> odds(np.array([0.125, 0.9]), 8).round(2).tolist()
    [0.0, 4.14]
    """
    sure = np.clip(confidence, 1.0 / n_classes, 1.0 - 1e-9)
    return np.asarray(np.maximum(np.log(sure) - np.log((1.0 - sure) / (n_classes - 1)), 0.0))


def confidence_at(log_odds: Floats, temperature: float | Floats, n_classes: int) -> Floats:
    """Returns the confidence of answers of such odds at a temperature.

    >>> confidence_at(odds(np.array([0.9]), 8), 1.0, 8).round(3).tolist()
    [0.9]
    """
    return np.asarray(1.0 / (1.0 + (n_classes - 1) * np.exp(-log_odds / temperature)))


def odds_edges(n_bins: int) -> Floats:
    """Returns the inner edges of the bins of odds."""
    return np.linspace(0.0, SUREST, n_bins + 1)[1:-1]


def strangeness_edges(n_bins: int) -> Floats:
    """Returns the upper scores of all bins but the last; bin 0 is of right answers, whose score is 0.

    Scores are 1 - probability (`least_ambiguous`); edges are even in the logarithm of the probability.
    """
    return np.concatenate([[0.0], 1.0 - np.geomspace(0.5, STRANGEST, n_bins - 1)[1:]])


def confidence_table(log_probs: Floats, truth: Counts, edges: Floats) -> Counts:
    """Returns (bins, 2): wrong and right answers in each bin of odds; of one recording one cell is 1."""
    bins, right = _sureness(log_probs, truth, edges)
    table = np.zeros((len(edges) + 1, 2), np.int64)
    np.add.at(table, (bins, right), 1)
    return table


def strangeness_table(log_probs: Floats, truth: Counts, edges: Floats) -> Counts:
    """Returns (bins,): how strange the truth was; of one recording one cell is 1."""
    return np.bincount(_strangeness(log_probs, truth, edges), minlength=len(edges) + 1).astype(np.int64)


def cells(log_probs: Floats, truth: Counts, n_bins: int) -> Counts:
    """Returns the two cells of each recording, (n, 2), in the flat tables: confidence, then strangeness."""
    bins, right = _sureness(log_probs, truth, odds_edges(n_bins))
    strange = _strangeness(log_probs, truth, strangeness_edges(n_bins))
    return np.stack([2 * bins + right, 2 * n_bins + strange], axis=1).astype(np.int64)


def _sureness(log_probs: Floats, truth: Counts, edges: Floats) -> tuple[Counts, Counts]:
    confidence = calibration.confidences(log_probs)
    bins = np.searchsorted(edges, odds(confidence, log_probs.shape[1]), side="right")
    return bins, (np.asarray(log_probs).argmax(axis=1) == truth).astype(np.int64)


def _strangeness(log_probs: Floats, truth: Counts, edges: Floats) -> Counts:
    scores = class_scores(log_probs, "least_ambiguous")[np.arange(len(truth)), truth]
    return np.searchsorted(edges, scores, side="left").astype(np.int64)


def of_counts(
    flat: Counts, *, n_bins: int, n_classes: int, deviation: float, per_patient: int, level: float = LEVEL
) -> CountedCalibration:
    """Returns the figures of released tables (flat, at least 3 * bins cells), which may hold noise and be negative.

    `deviation` is that of the noise on each cell, `per_patient` how many recordings of a patient count at most.
    """
    values = np.asarray(flat, np.float64)
    answers, strange = values[: 2 * n_bins].reshape(n_bins, 2), values[2 * n_bins : 3 * n_bins]
    n = float(answers.sum())
    if n <= READABLE * deviation * np.sqrt(2 * n_bins) or n <= 0:
        return CountedCalibration(n=max(n, 0.0), deviation=deviation, level=level)
    width = SUREST / n_bins
    middle = np.asarray((np.arange(n_bins) + 0.5) * width, np.float64)
    temperature = _temperature(answers, deviation, middle, n_classes)
    score = _threshold(strange, deviation, per_patient, level)
    return CountedCalibration(
        n=n,
        deviation=deviation,
        level=level,
        temperature=temperature,
        error_before=_error(answers, confidence_at(middle, 1.0, n_classes), deviation),
        error=_error(answers, confidence_at(middle, temperature, n_classes), deviation),
        least_probability=None if score is None else float(np.clip(1.0 - score, 0.0, 1.0)),
    )


def _temperature(answers: Floats, deviation: float, middle: Floats, n_classes: int) -> float:
    """Returns the temperature at which confidences agree best with how many answers were right (least chi-squared).

    Each bin counts by how well it is known, sampling and noise together. A likelihood would not do: with what noise
    puts into empty bins it has its best temperature elsewhere.
    """
    n, right = answers.sum(axis=1), answers[:, 1]
    variance = np.maximum(n, 0.0) / 4.0 + deviation**2 + 1e-9
    candidates = np.geomspace(calibration.COLDEST, calibration.HOTTEST, N_CANDIDATES)
    sure = confidence_at(middle, candidates[:, None], n_classes)
    losses = ((right - sure * n) ** 2 / variance).sum(axis=1)
    return float(candidates[int(losses.argmin())])


def _error(answers: Floats, confidence: Floats, deviation: float) -> CalibrationError:
    """Returns the calibration error over bins; what chance and noise leave of it stands beside it."""
    n, total = answers.sum(axis=1), float(answers.sum())
    value = np.abs(answers[:, 1] - confidence * n).sum() / total
    spread = np.maximum(n, 0.0) * confidence * (1.0 - confidence)
    spread = spread + deviation**2 * ((1.0 - confidence) ** 2 + confidence**2)
    chance = np.sqrt(2.0 / np.pi) * np.sqrt(spread).sum() / total
    return CalibrationError(value=float(min(value, 1.0)), if_perfect=float(min(chance, 1.0)))


def _threshold(strange: Floats, deviation: float, per_patient: int, level: float) -> float | None:
    """Returns the smallest edge below which the truth surely lies often enough; None where no edge is sure."""
    from scipy.special import ndtri  # here, since start-up does not need it

    n_bins, total = len(strange), float(strange.sum())
    n_patients = max(total / per_patient, 1.0)
    wanted = level * (n_patients + 1.0) / n_patients  # one more patient, who misses everything
    if wanted >= 1.0:
        return None
    surely = -float(ndtri(SURELY / n_bins))
    for index, edge in enumerate(strangeness_edges(n_bins)):
        inside, outside = float(strange[: index + 1].sum()), float(strange[index + 1 :].sum())
        missing = wanted * outside - (1.0 - wanted) * inside
        variance = wanted**2 * (n_bins - index - 1) + (1.0 - wanted) ** 2 * (index + 1)
        if missing + surely * deviation * np.sqrt(variance) <= 0.0:
            return float(edge)
    return None


def of_rounds(rounds: Sequence[RoundFacts], study: Study) -> CountedCalibration | None:
    """Returns what the last released counts of a run say of calibration; None where there are none."""
    tables, counted = study.tables, released(rounds, study)
    if counted is None or not tables.confidence_bins:
        return None
    # Without privacy every recording counts: as many of each patient as the usual private study would.
    spec = LocalPrivacy if isinstance(study.privacy, NoPrivacy) else study.privacy
    return of_counts(
        np.array(counted.tables, np.int64).reshape(-1)[tables.n_confusions :],
        n_bins=tables.confidence_bins,
        n_classes=tables.n_classes,
        deviation=counted.deviation,
        per_patient=spec.counts_utterances,
    )
